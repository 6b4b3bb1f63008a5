"""What the ε of a finished run means: for several records of one person, for attackers, for beliefs, for noise.

Computed from the numbers in ``metrics.json`` alone, so that a reader can do it again. Reads no private data.
"""

from __future__ import annotations

import functools
import math

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import events, gaussian
from tfprivacy_lab.dp.accounting.group import group_epsilon
from tfprivacy_lab.dp.accounting.tradeoff import largest_belief, largest_tpr, probability_beyond

GROUPS = (2, 3, 4)
FALSE_POSITIVES = (0.001, 0.01)
PRIORS = (0.001, 0.01, 0.1, 0.5)


def run_of(metrics: dict) -> gaussian.DpSgdRun | None:
    """The run under Gaussian noise that ``metrics.json`` describes, None if its numbers describe none."""
    if _finite(metrics.get("l2_norm_clip")) is None:
        return None
    try:
        return gaussian.DpSgdRun(
            *(metrics.get(name) for name in ("examples", "batch_size", "noise_multiplier", "steps"))
        )
    except InputError:
        return None


def bound_of(metrics: dict):
    """:func:`.largest_tpr` of the run as a function of the FPR; None without an account.

    Of the run's log of events, where it has one: that holds for Laplace noise too.
    """
    part = run_of(metrics)
    try:
        part = events.from_json(metrics["events"][0]) if metrics.get("events") else part
        if part is not None:
            largest_tpr(part, FALSE_POSITIVES[0])
    except InputError:
        return None
    return None if part is None else functools.partial(largest_tpr, part)


def meaning(metrics: dict) -> dict:
    """Figures that pages print beside ε, each None where the metrics do not hold what it takes.

    Args:
        metrics: What ``metrics.json`` holds of a run under Gaussian noise.

    Returns:
        ``groups``: for each of :data:`GROUPS`, ``size``, ``epsilon`` by
        :func:`~tfprivacy_lab.dp.accounting.group.group_epsilon`, and ``multiple``, k · ε, which is no guarantee;
        ``largest_tpr``: by false-positive rate, over the whole trade-off curve; ``beliefs``: for each of
        :data:`PRIORS`, ``prior`` and ``posterior``; ``beyond``: a bound on the probability of a loss above ε;
        ``shifted_epsilon``: ε of a fixed order of batches under add-or-remove, where every later batch shifts;
        ``noise_norm`` and ``noise_over_clip``: norm of one step's noise, and the same over C.
    """
    run, epsilon, delta = run_of(metrics), *map(_finite, (metrics.get("epsilon"), metrics.get("delta")))
    weights, clip = map(_finite, (metrics.get("trained_weights"), metrics.get("l2_norm_clip")))
    over_clip = None if None in (run, weights) else run.noise_multiplier * math.sqrt(weights)
    if epsilon is None or delta is None:
        run = None
    return {
        "groups": [
            {
                "size": size,
                "epsilon": _group_epsilon(run, size, delta) if run else None,
                "multiple": None if epsilon is None else size * epsilon,
            }
            for size in GROUPS
        ],
        "largest_tpr": {rate: _or_none(largest_tpr, run, rate) if run else None for rate in FALSE_POSITIVES},
        "beliefs": [
            {"prior": prior, "posterior": None if epsilon is None else _or_none(largest_belief, prior, epsilon)}
            for prior in PRIORS
        ],
        "beyond": _or_none(probability_beyond, run, epsilon) if run else None,
        "shifted_epsilon": _or_none(shifted_epsilon, run, delta) if run else None,
        "noise_norm": None if None in (over_clip, clip) else over_clip * clip,
        "noise_over_clip": over_clip,
    }


def shifted_epsilon(run: gaussian.DpSgdRun, delta: float) -> float:
    r"""ε under add-or-remove if batches were cut from one fixed order: why the figure for that order is not for it.

    One record more at the front, and every batch loses one example and gains another: each of T sums may move by 2C,
    and does if gradients alternate. One Gaussian of :math:`\sigma / (2 \sqrt{T})` (Balle and Wang 2018, Thm 8), as long
    as the record does not change the number of batches a pass.
    """
    gaussian.check_delta(delta)
    return gaussian.gaussian_epsilon(run.noise_multiplier / (2 * math.sqrt(run.steps)), delta)


@functools.lru_cache(maxsize=64)
def _group_epsilon(run, size, delta):
    """Kept: a report and its card ask for the same."""
    return _or_none(group_epsilon, run, size, delta)


def _or_none(function, *arguments) -> float | None:
    """A number, or None where the function refuses its arguments."""
    try:
        return float(function(*arguments))
    except InputError:
        return None


def _finite(value) -> float | None:
    """A finite number as a float, else None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
