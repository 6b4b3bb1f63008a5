"""ε from a privacy loss distribution: where its hockey-stick divergence reaches δ."""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution

# A divergence of δ is nearly always reached before the mass above a loss is so many times δ.
_SOON = 1000.0


def epsilon_for_delta(loss: privacy_loss_distribution.PrivacyLossDistribution, delta: float) -> float:
    r"""Smallest ε >= 0 at which the divergence of either direction is at most δ; infinite if there is none.

    With U and L the masses, under one and the other data set, of losses above ε and infinite ones,
    :math:`\delta(\epsilon) = U - e^\epsilon L`. The same figure as the distribution's own
    ``get_epsilon_for_delta``, by array operations: training asks for it each epoch, and a loop over 10^5 losses
    takes longer than an epoch of a small model.

    Args:
        loss: Any distribution of dp_accounting, dense or sparse.
        delta: Target δ in (0, 1).
    """
    directions = {id(pmf): pmf for pmf in (loss._pmf_remove, loss._pmf_add)}
    return max(_epsilon_of_direction(pmf.to_dense_pmf(), delta) for pmf in directions.values())


def _epsilon_of_direction(pmf, delta: float) -> float:
    """ε of one direction; losses at or below zero have no say, as ε is not below zero."""
    if pmf._infinity_mass > delta:
        return math.inf
    # Probabilities of losses above zero, from the largest down: a divergence is made of the masses above a loss.
    top, interval = pmf._lower_loss + pmf.size - 1, pmf._discretization
    probs = np.asarray(pmf._probs)[max(0, 1 - pmf._lower_loss) :][::-1]
    above = pmf._infinity_mass + np.cumsum(probs)
    # The divergence is less than the mass: where that has not reached δ it has not, and soon after it has.
    first, soon = (int(np.searchsorted(above, level, side="right")) for level in (delta, _SOON * delta))
    if first == probs.size:
        return 0.0
    below = float(np.exp(-_losses(top, 0, first, interval)) @ probs[:first])
    for last in (soon, probs.size):
        losses = _losses(top, first, last, interval)
        before = float(above[first - 1]) if first else pmf._infinity_mass
        found = crossing(losses, probs[first:last], interval, above=before, below=below, delta=delta)
        if found is not None:
            return found
    mass, lower = float(above[-1]), below + float(np.exp(-losses) @ probs[first:])
    if mass - lower <= delta:
        return 0.0
    return math.log((mass - delta) / lower) if lower else float(losses[-1])


def crossing(
    losses: np.ndarray, probs: np.ndarray, interval: float, *, above: float, below: float, delta: float
) -> float | None:
    r"""Where the divergence reaches δ among some losses, from the largest down; None if it does not.

    Args:
        losses: Each ``interval`` below the one before it.
        probs: Their probabilities.
        interval: > 0.
        above: Mass of what is above them, infinite losses included.
        below: The same under the other data set.
        delta: δ.

    Returns:
        The ε at which :math:`\delta(\epsilon) = \delta`, whatever its sign.
    """
    mass, lower = above + np.cumsum(probs), below + np.cumsum(np.exp(-losses) * probs)
    # At the next loss, only what is above it counts; the first one at which that passes δ ends the search.
    with np.errstate(divide="ignore", invalid="ignore"):  # by logarithms, as neither factor need be a float
        divergence = mass - np.exp(losses - interval + np.log(lower))
    passed = np.flatnonzero(divergence > delta)
    if not passed.size:
        return None
    place = passed[0]
    if lower[place] == 0.0:  # losses so large that their mass under the other data set is no float
        return float(losses[place])
    return float(math.log((mass[place] - delta) / lower[place]))


def _losses(top: int, first: int, last: int, interval: float) -> np.ndarray:
    """Losses number first..last-1, counted from the largest down."""
    return (top - np.arange(first, last)) * interval
