"""Privacy of a group: what is left of a guarantee for one record when k records change together.

No TensorFlow is imported here.
"""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.dp import accounting, composition
from tfprivacy_lab.dp.hockey_stick import epsilon_for_delta
from tfprivacy_lab.dp.repetition import self_compose

_GRID = 2_000


def group_epsilon(part, size: int, delta: float) -> float:
    r"""ε for ``size`` records by the generic conversion, optimised over the whole privacy curve.

    From :math:`(\epsilon_0, \delta_0)` for one record follows :math:`(k \epsilon_0, \delta_0 (e^{k \epsilon_0} - 1) /
    (e^{\epsilon_0} - 1))` for k; every point of the curve :math:`\delta_0(\epsilon_0)` gives one, and the smallest
    that keeps to δ is returned.

    Args:
        part: A :class:`~tfprivacy_lab.dp.accounting.DpSgdRun` or an event.
        size: Number k of records that are added or removed, in any mixture, at least 1.
        delta: Target δ in (0, 1) for the group.

    Returns:
        ε of the group.

    Raises:
        InputError: naming the argument, or if no point of the curve that can be computed keeps to δ.

    Guarantee: holds for every mechanism. Source: Dwork and Roth 2014, Thm 2.2; with δ, Vadhan 2017, Lemma 2.2.
    """
    check_positive_int("size", size)
    accounting.check_delta(delta)
    loss = composition.privacy_loss(part)
    if size == 1:
        return composition.epsilon_of(part, delta)

    def keeps(epsilon):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            # (e^{kε} - 1) / (e^ε - 1) in logarithms; k at ε = 0.
            factor = np.where(
                epsilon > 0,
                (size - 1) * epsilon + np.log(-np.expm1(-size * epsilon)) - np.log(-np.expm1(-epsilon)),
                math.log(size),
            )
            return np.log(np.maximum(loss.get_delta_for_epsilon(epsilon), 0)) + factor <= math.log(delta)

    # Small enough that the curve cannot be followed further: the ε at which δ is lost in rounding.
    largest = epsilon_for_delta(loss, 1e-13)
    if not math.isfinite(largest):
        largest = epsilon_for_delta(loss, delta) * 4
    low, high = 0.0, largest
    for _ in range(2):
        grid = np.linspace(low, high, _GRID)
        fitting = np.flatnonzero(keeps(grid))
        if not fitting.size:
            raise InputError(
                f"No finite epsilon can be computed for size={size} at delta={delta:g}; use a smaller group, a larger "
                "delta, or group_epsilon_sampled."
            )
        # Any point that keeps to δ is a proof; only the step of the grid is lost.
        low, high = float(grid[max(fitting[0] - 1, 0)]), float(grid[fitting[0]])
    return size * high


def group_epsilon_gaussian(noise_multiplier: float, releases: int, size: int, delta: float) -> float:
    r"""Exact ε for ``size`` records under Gaussian noise without sampling: the sensitivity is k times as large.

    Args:
        noise_multiplier: Noise over the sensitivity to one record.
        releases: Number T of releases that see all records; they are one of :math:`\sigma / (k \sqrt{T})`.
        size: Number k of records that change, in any way that moves the sum by at most k.
        delta: Target δ in (0, 1).

    Raises:
        InputError: naming the argument that is out of range.

    Source: Balle and Wang 2018, Thm 8.
    """
    noise_multiplier = accounting.check_finite_number("noise_multiplier", noise_multiplier, above=0)
    check_positive_int("releases", releases)
    check_positive_int("size", size)
    accounting.check_delta(delta)
    return accounting.gaussian_epsilon(noise_multiplier / (size * math.sqrt(releases)), delta)


def group_epsilon_sampled(run: accounting.DpSgdRun, size: int, delta: float) -> float:
    r"""ε for ``size`` records that join or leave together, for Poisson-sampled Gaussian steps; tight.

    Of k records, :math:`J \sim \text{Binomial}(k, q)` are in a step, and move its sum by at most J clipping norms.
    So a step is dominated by :math:`N(0, \sigma^2)` against :math:`\sum_j \Pr[J = j] N(j, \sigma^2)`, a mixture of
    Gaussians, and T steps by its T-fold composition. Reached if all k gradients are alike: no better bound exists.

    Args:
        run: The run.
        size: Number k of records, at least 1.
        delta: Target δ in (0, 1).

    Returns:
        ε by PLD, rounded upwards.

    Raises:
        InputError: naming the argument; or if the installed dp-accounting has no mixtures of Gaussians.

    Guarantee: D' is D with k records more, or k fewer: a person's k records. Not covered: some added and others
    removed at once (use :func:`group_epsilon`).

    Source: Choquette-Choo et al. 2024, section 4 (mixture of Gaussians mechanisms).
    """
    check_positive_int("size", size)
    accounting.check_delta(delta)
    accounting.check_finite_number("noise_multiplier", run.noise_multiplier, at_least=accounting.SMALLEST_NOISE)
    if size == 1:
        return accounting.epsilon_after(run, run.steps, delta)
    mixture = getattr(privacy_loss_distribution, "from_mixture_gaussian_mechanism", None)
    if mixture is None:
        raise InputError("group_epsilon_sampled needs dp-accounting 0.6 or newer; use group_epsilon.")
    joined = np.arange(size + 1)
    step = mixture(
        run.noise_multiplier,
        joined.astype(float).tolist(),
        _binomial(size, run.sampling_probability).tolist(),
        value_discretization_interval=accounting.DISCRETISATION,
    )
    epsilon = epsilon_for_delta(self_compose(step, run.steps), delta)
    if not math.isfinite(epsilon):
        raise InputError(f"No finite epsilon can be computed at delta={delta:g}; use a larger delta.")
    return epsilon


def _binomial(size: int, probability: float) -> np.ndarray:
    """Probabilities of 0 … size, summing to 1 to the last digit that the mixture checks."""
    weights = stats.binom.pmf(np.arange(size + 1), size, probability)
    return weights / math.fsum(weights)
