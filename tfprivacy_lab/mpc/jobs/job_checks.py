"""What a job refuses: what is no job, names nobody knows, shapes that do not fit, claims that do not follow.

:class:`tfprivacy_lab.mpc.jobs.job.Job` calls these in turn; each may rely on those before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfprivacy_lab.checks import InputError, check_array, check_choice, check_finite_number, check_positive_int, settle
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint
from tfprivacy_lab.mpc.jobs.models import LARGEST_AXIS, Layer, Training
from tfprivacy_lab.mpc.jobs.noise_shares import NoiseShares, logistic_gradient_norm
from tfprivacy_lab.mpc.jobs.protocols import check_world, listed

SPLITS = ("columns", "rows")
_OF_A_SUM = ("world", "layers", "features", "holders", "reveal_predictions", "feature_range", "noise", "arithmetic")


def check_fields(job) -> None:
    """Every field as the type that it has in the job's file, whatever equal thing it was given as."""
    check_world(job.world)
    for name, kind in {"training": Training, "noise": NoiseShares, "arithmetic": FixedPoint}.items():
        value = getattr(job, name)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"Expected {name} to be a {kind.__name__}, got {name}={value!r:.80}.")
    settle(job, layers=listed("layers", job.layers, Layer))
    for name in ("labels", "reveal_weights", "reveal_predictions", "holders"):
        settle(job, **{name: listed(name, getattr(job, name), str)})
    for name in ("features", "query"):
        settle(job, **{name: _shapes(name, getattr(job, name))})
    if not job.holders:
        settle(job, holders=tuple(job.features or job.query))
    check_choice("split", job.split, SPLITS)
    if not isinstance(job.initial, str):
        raise InputError(f"Expected initial to be public, shares or a party's name, got initial={job.initial!r:.80}.")
    for name in ("feature_range", "label_range"):
        settle(job, **{name: check_finite_number(name, getattr(job, name), above=0)})
    settle(job, sigmoid_error=check_finite_number("sigmoid_error", job.sigmoid_error, at_least=1e-6, at_most=0.1))
    if job.weight_range is not None:
        settle(job, weight_range=check_finite_number("weight_range", job.weight_range, above=0))
    if job.weights is not None:
        settle(job, weights=_numbers(job.weights))


def _shapes(argument: str, given) -> dict[str, tuple[int, int]]:
    if not isinstance(given, Mapping):
        raise InputError(f"Expected {argument} to map parties to shapes (rows, columns), got {given!r:.80}.")
    found = {}
    for party, shape in given.items():
        if not isinstance(shape, tuple | list | np.ndarray) or getattr(shape, "ndim", 1) != 1 or len(shape) != 2:
            raise InputError(
                f"Expected {argument} to hold shapes (rows, columns), got {shape!r:.80} for {party!r:.80}."
            )
        found[party] = tuple(check_positive_int(argument, length, at_most=LARGEST_AXIS) for length in shape)
    return found


def _numbers(weights) -> list:
    """Weights as nested lists of floats."""
    if not isinstance(weights, list | tuple):
        raise InputError(f"Expected weights to be a list: kernel, bias of each layer in turn, got {type(weights)}.")
    found = []
    for number, one in enumerate(weights):
        array = check_array(f"weights[{number}]", one)
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise InputError(
                f"Expected weights to hold arrays of finite numbers, or nested lists; weights[{number}] is none."
            )
        found.append(array.astype(np.float64).tolist())
    return found


def check_names(job) -> None:
    """Every name is of a party, and stands where it stands once."""
    named = {"features": job.features, "query": job.query, "labels": job.labels}
    named |= {"reveal_weights": job.reveal_weights, "reveal_predictions": job.reveal_predictions}
    named["noise"] = job.noise.parties if job.noise else ()
    if job.initial not in ("public", "shares"):
        named["initial"] = (job.initial,)
    for argument, parties in named.items():
        if len(set(parties)) != len(parties):
            raise InputError(f"Expected {argument} to name each party once, got {tuple(parties)!r}.")
        for party in parties:
            if party not in job.world.parties:
                known = ", ".join(job.world.parties)
                raise InputError(f"Expected {argument} to name parties ({known}), got {party!r}.")
    beside = job.features or job.query
    if sorted(job.holders) != sorted(beside):
        raise InputError(
            f"Expected holders to name every party of {'features' if job.features else 'query'} once, in the "
            f"order of their columns or rows ({', '.join(sorted(beside))}), got {job.holders!r}."
        )


def put_in_order(job) -> None:
    """Whatever order a mapping or a list of parties was given in, it now is that of ``holders``."""
    place = {party: number for number, party in enumerate(job.holders)}
    for name in ("features", "query"):
        given = getattr(job, name)
        settle(job, **{name: {party: given[party] for party in sorted(given, key=lambda party: place.get(party, 0))}})
    settle(job, labels=tuple(sorted(job.labels, key=lambda party: place.get(party, 0))))


def check_sum(job) -> None:
    """A sum of vectors is asked for nothing that only a model has."""
    for field in dataclasses.fields(job):
        made = field.default_factory is not dataclasses.MISSING
        default, given = field.default_factory() if made else field.default, getattr(job, field.name)
        if field.name not in _OF_A_SUM and (given or default) != default:
            raise InputError(
                f"Expected {field.name} to be left out of a job without layers, a sum of the parties' vectors, got "
                f"{field.name}={given!r:.80}; give layers, or leave it out."
            )


def check_shapes(job) -> None:
    """Columns of the same rows, rows of the same columns, or vectors of one length."""
    for argument in ("features", "query"):
        shapes = getattr(job, argument)
        same = 1 if argument == "features" and (job.split == "rows" or not job.layers) else 0
        if len({shape[same] for shape in shapes.values()}) > 1:
            axis = ("rows", "columns")[same]
            raise InputError(f"Expected every party's {argument} to have as many {axis}, got {shapes}.")
    if not job.layers and (not job.features or any(shape[0] != 1 for shape in job.features.values())):
        raise InputError("Expected features of shape (1, columns) for a sum of the parties' vectors.")


def check_model(job) -> None:
    """The training fits the data, the query the model, and the weights both."""
    if not job.features and not job.query:
        raise InputError("Expected features, or a query, of at least one party, got none.")
    if job.training is not None:
        _check_training(job)
    elif job.noise is not None:
        raise InputError(
            "Expected noise beside training, or in a sum, got noise for a model that is not trained, to which nothing "
            "adds it; give training, or leave noise out."
        )
    if job.labels and job.training is None:
        raise InputError(
            f"Expected labels beside training, got labels={job.labels!r:.80} for a model that is not trained; give "
            "training, or leave labels out."
        )
    _check_query(job)
    if job.reveal_predictions and not job.query:
        raise InputError(
            f"Expected a query with reveal_predictions, got reveal_predictions={job.reveal_predictions!r:.80} and no "
            "query; give the rows to predict, or leave it out."
        )
    _check_weights(job)


def _check_weights(job) -> None:
    if job.initial == "public":
        wanted, given = job.weight_shapes, [np.shape(one) for one in job.weights or ()]
        if given != wanted:
            raise InputError(f"Expected public weights of shapes {wanted}, got {given}.")
        # Training clips them; shares of weights that are not trained would name a bound that does not hold.
        largest = max(float(np.abs(np.asarray(one)).max()) for one in job.weights)
        if job.training is None and job.weight_range is not None and largest > job.weight_range:
            raise InputError(
                f"Expected public weights within weight_range={job.weight_range:g}, got one of magnitude {largest:g}; "
                "raise weight_range, or leave it out."
            )
    elif job.weight_range is None:
        raise InputError("Expected weight_range, the public bound on weights that are secret from the start.")


def _check_training(job) -> None:
    holders = tuple(job.features)
    right = len(job.labels) == 1 if job.split == "columns" else set(job.labels) == set(holders)
    if not holders or not right:
        raise InputError(
            "Expected features, and labels from one party (split by columns) or from every holder of "
            f"features (split by rows), got labels={job.labels!r}."
        )
    rows, batch = job.rows, job.training.batch_size or job.rows
    if rows % batch:
        raise InputError(f"Expected batch_size to divide the {rows} rows, got batch_size={batch}.")
    logistic = job.training.loss == "binary_crossentropy"
    if logistic != (job.layers[-1].activation == "sigmoid") or job.layers[-1].activation == "relu":
        raise InputError("Expected binary_crossentropy with a last sigmoid, or squares with a last linear.")
    if logistic and job.label_range != 1:
        raise InputError(f"Expected label_range=1 for binary_crossentropy, got {job.label_range:g}.")


def _check_query(job) -> None:
    """A query has the columns of the features, each of the party that has it there, or all of one that has none."""
    given = {party: columns for party, (_, columns) in job.query.items()}
    if not given or not job.features:
        return
    one_has_all = job.split == "rows" or len(job.features) == 1
    wanted = {party: columns for party, (_, columns) in job.features.items()}
    has_all = list(given.values()) == [job.width] and (one_has_all or not set(given) & set(wanted))
    if not has_all and (one_has_all or given != wanted):
        whom = f"all {job.width} columns from one party"
        if not one_has_all:
            whom = f"{wanted}, or {whom} without features, in the order of {', '.join(job.holders)}"
        raise InputError(f"Expected a query of the features' columns, {whom}, got {given}.")


def check_arithmetic(job) -> None:
    """Shares are read in the arithmetic that they are in; noise lies on the arithmetic's grid."""
    if job.initial == "shares" and job.arithmetic is None:
        raise InputError(
            "Expected arithmetic, the field_bits and fraction_bits of the shares: those of the plan of the run "
            "that left them, which 'mpc party' prints."
        )
    if job.noise and job.arithmetic and job.noise.fraction_bits != job.arithmetic.fraction_bits:
        raise InputError(
            f"Expected noise of the arithmetic's fraction_bits={job.arithmetic.fraction_bits}, got "
            f"fraction_bits={job.noise.fraction_bits}."
        )


def check_claim(job) -> None:
    """What is claimed of the noise must follow from the job: ε from the stddev; in training, the clip from row_norm.

    In a sum nothing in the job bounds a record's share: there the clip is what its parties say that they keep to.
    """
    claim = job.noise.claim
    if job.layers:
        if job.initial != "public":
            raise InputError(
                f"Expected initial=public with a claim of epsilon, got initial={job.initial!r}: weights that were "
                "trained before hold what no noise of this job covers; start from public weights, or leave "
                "noise.claim out."
            )
        bounded = job.training is not None and job.training.loss == "binary_crossentropy" and len(job.layers) == 1
        if not bounded or job.training.row_norm is None:
            raise InputError(
                "Expected a claim of epsilon for a sum, or for one layer trained by binary_crossentropy with "
                "row_norm: of other models no bound on a row's gradient is known; leave noise.claim out."
            )
        least = logistic_gradient_norm(job.row_norm, job.sigmoid_error, job.layers[0].units)
        if claim.l2_norm_clip < least * (1 - 1e-9) or claim.roundings < 2:
            raise InputError(
                f"Expected noise.claim of l2_norm_clip >= {least:.6g}, a row's gradient under row_norm, and of "
                f"roundings >= 2, got l2_norm_clip={claim.l2_norm_clip:g}, roundings={claim.roundings}."
            )
    job.noise.check_worth(job.parameters, job.training.steps if job.training else 1)
