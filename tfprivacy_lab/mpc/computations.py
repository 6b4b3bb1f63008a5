"""What takes one job and no training: a party's head on another's features, the sum of the parties' vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfprivacy_lab.checks import InputError, check_array, check_matrix, check_numbers
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.models import Layer
from tfprivacy_lab.mpc.jobs.noise_shares import NoiseShares
from tfprivacy_lab.mpc.jobs.protocols import World, check_world


def shared_head(
    kernel, bias, world: World, *, owner: str, features_of: str, features: np.ndarray, feature_range, run=None
):
    """Predict by one party's frozen dense head on another's features; logits go to the features' owner alone.

    Args:
        kernel: (d, c) of ``owner``.
        bias: (c,) of ``owner``.
        world: Who computes.
        owner: Who holds the weights.
        features_of: Who holds the features and receives the logits.
        features: (samples, d).
        feature_range: Public bound on the features.
        run: As in :meth:`SharedModel.fit`.

    Returns:
        A :class:`~tfprivacy_lab.mpc.parties.Run`; the logits are ``run.outcomes[features_of].predictions``.
        ``weight_range`` is the next power of two above the head's largest weight, and public.

    Raises:
        InputError: naming what does not fit.
    """
    check_world(world)
    kernel, features = check_matrix("kernel", kernel), check_matrix("features", features)
    bias = check_numbers("bias", bias)
    if bias.shape != kernel.shape[1:]:
        raise InputError(f"Expected bias of shape {kernel.shape[1:]} beside kernel {kernel.shape}, got {bias.shape}.")
    largest = max(float(np.abs(kernel).max()), float(np.abs(bias).max()), 2.0**-8)
    job = Job(
        world=world,
        layers=(Layer(kernel.shape[1]),),
        query={features_of: features.shape},
        initial=owner,
        reveal_predictions=(features_of,),
        feature_range=feature_range,
        weight_range=2.0 ** np.ceil(np.log2(largest)),
    )
    data = {owner: {"kernel_0": kernel, "bias_0": bias}}
    data.setdefault(features_of, {})["query"] = features
    if run is None:
        from tfprivacy_lab.mpc.parties import simulate as run
    return run(job, data)


def shared_sum(
    vectors: dict[str, np.ndarray],
    world: World,
    *,
    reveal: tuple[str, ...],
    value_range: float,
    noise: NoiseShares | None = None,
    noise_steps: dict[str, np.ndarray] | None = None,
    run: Callable | None = None,
):
    """The sum of the parties' vectors, with their noise if there is any, opened to ``reveal`` only.

    Args:
        vectors: Party to its vector, all of one length.
        world: Who computes.
        reveal: Who learns the sum.
        value_range: Public bound on the magnitude of every entry.
        noise: The noise that is agreed on, and
        noise_steps: party to whole numbers, as long as a vector, in steps of the grid.
        run: As in :meth:`SharedModel.fit`.

    Raises:
        InputError: naming what does not fit.
    """
    check_world(world)
    vectors = row_ids.of_parties("vectors", vectors, world.parties)
    data = {
        party: {"x": check_matrix("vectors", np.atleast_2d(check_array("vectors", value)))}
        for party, value in vectors.items()
    }
    for party, value in row_ids.of_parties("noise_steps", noise_steps or {}, world.parties).items():
        data.setdefault(party, {})["noise"] = np.atleast_2d(check_array("noise_steps", value))
    job = Job(
        world=world,
        features={party: one["x"].shape for party, one in data.items() if "x" in one},
        reveal_predictions=reveal,
        feature_range=value_range,
        noise=noise,
    )
    if run is None:
        from tfprivacy_lab.mpc.parties import simulate as run
    return run(job, data)
