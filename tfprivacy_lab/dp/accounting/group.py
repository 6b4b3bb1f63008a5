"""Privacy of a group: what is left of a guarantee for one record when k records change together.

No TensorFlow is imported here.
"""

from __future__ import annotations

import math

import numpy as np
from dp_accounting import rdp

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.dp.accounting import adjacency, composition, gaussian
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import PoissonSampledGaussianGroup, canonical
from tfprivacy_lab.dp.accounting.privacy_loss.pld import epsilon_of_counts

_GRID = 500
_LARGEST_EPSILON = 2e4


def group_epsilon(part, size: int, delta: float) -> float:
    r"""ε for ``size`` records by the generic conversion, optimised over the whole privacy curve.

    From :math:`(\epsilon_0, \delta_0)` for one record follows :math:`(k \epsilon_0, \delta_0 (e^{k \epsilon_0} - 1) /
    (e^{\epsilon_0} - 1))` for k; every point of the curve :math:`\delta_0(\epsilon_0)` gives one, and the smallest
    that keeps to δ is returned.

    Args:
        part: A :class:`~tfprivacy_lab.dp.accounting.gaussian.DpSgdRun` or an event.
        size: Number k of records that are added or removed, in any mixture, at least 1.
        delta: Target δ in (0, 1) for the group.

    Returns:
        ε of the group.

    Raises:
        InputError: naming the argument, or if no point of the curve that can be computed keeps to δ.

    Guarantee: holds for every mechanism. The curve is the lower of that of PLD and that of RDP, both upper bounds.

    Source: Dwork and Roth 2014, Thm 2.2; with δ, Vadhan 2017, Lemma 2.2; RDP to (ε, δ) by Canonne, Kamath and Steinke
    2020, Prop. 12.
    """
    check_positive_int("size", size)
    gaussian.check_delta(delta)
    if size == 1:
        return composition.epsilon_of(part, delta)
    log_delta, highest = _curve(part), composition.epsilon_of(part, delta) + 1
    pure = composition.pure_epsilon(part)

    def first_fitting(low, high):
        grid = np.linspace(low, high, _GRID)
        fitting = np.flatnonzero(log_delta(grid) + _log_factor(size, grid) <= math.log(delta))
        # Any point that keeps to δ is a proof; only the step of the grid is lost.
        return (float(grid[max(fitting[0] - 1, 0)]), float(grid[fitting[0]])) if fitting.size else None

    low, high = 0.0, highest
    while (found := first_fitting(low, high)) is None:
        low, high = high, 2 * high
        if low > _LARGEST_EPSILON:
            if pure is not None:
                return size * pure
            raise InputError(
                f"No finite epsilon can be computed for size={size} at delta={delta:g}; use a smaller group, a larger "
                "delta, or group_epsilon_sampled."
            )
    epsilon = first_fitting(*found)[1]
    return size * (epsilon if pure is None else min(epsilon, pure))


def _log_factor(size: int, epsilon: np.ndarray) -> np.ndarray:
    """:math:`\\log((e^{k \\epsilon} - 1) / (e^\\epsilon - 1))`; log k at ε = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (size - 1) * epsilon + np.log(-np.expm1(-size * epsilon)) - np.log(-np.expm1(-epsilon))
    return np.where(epsilon > 0, factor, math.log(size))


def _curve(part):
    """log δ₀ as a function of ε₀ for one record, an upper bound.

    By PLD, down to what losses so rare that they count as infinite leave, and by RDP, which knows no such end.
    """
    loss, accountant = composition.privacy_loss(part), rdp.RdpAccountant()
    event, orders, divergences = adjacency.plain(composition.event_of(part)), None, None
    if accountant.supports(event):
        accountant.compose(event)
        orders, divergences = accountant.orders, accountant.rdp
        known = np.isfinite(divergences) & (divergences > 0) & (orders > 1.01)
        orders, divergences = orders[known], divergences[known]

    def log_delta(epsilon):
        with np.errstate(divide="ignore"):
            by_pld = np.log(loss.get_delta_for_epsilon(epsilon))
        if orders is None or not orders.size:
            return by_pld
        by_order = (orders - 1) * (divergences - epsilon[:, np.newaxis] + np.log1p(-1 / orders)) - np.log(orders)
        return np.minimum(by_pld, by_order.min(axis=1))

    return log_delta


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
    noise_multiplier = gaussian.check_finite_number("noise_multiplier", noise_multiplier, above=0)
    check_positive_int("releases", releases)
    check_positive_int("size", size)
    gaussian.check_delta(delta)
    return gaussian.gaussian_epsilon(noise_multiplier / (size * math.sqrt(releases)), delta)


def group_epsilon_sampled(run: gaussian.DpSgdRun, size: int, delta: float) -> float:
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
        InputError: naming the argument.

    Guarantee: D' is D with k records more, or k fewer: a person's k records. Not covered: some added and others
    removed at once (use :func:`group_epsilon`).

    Source: Choquette-Choo et al. 2024, section 4 (mixture of Gaussians mechanisms).
    """
    check_positive_int("size", size)
    gaussian.check_delta(delta)
    gaussian.check_finite_number("noise_multiplier", run.noise_multiplier, at_least=gaussian.SMALLEST_NOISE)
    if size == 1:
        return gaussian.epsilon_after(run, run.steps, delta)
    step = PoissonSampledGaussianGroup(run.sampling_probability, size, run.noise_multiplier)
    return gaussian.finite(epsilon_of_counts(canonical({step: run.steps}), float(delta)), delta)
