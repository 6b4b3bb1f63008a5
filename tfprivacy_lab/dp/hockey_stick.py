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
        losses, mass = _losses(top, first, last, interval), above[first:last]
        lower = below + np.cumsum(np.exp(-losses) * probs[first:last])
        # At the next loss, only what is above it counts; the first one at which that passes δ ends the search.
        with np.errstate(divide="ignore"):  # by logarithms, as neither factor need be a float
            divergence = mass - np.exp(losses - interval + np.log(lower))
        passed = np.flatnonzero(divergence > delta)
        if passed.size:
            break
    else:
        if mass[-1] - lower[-1] <= delta:
            return 0.0
        passed = [-1]
    if lower[passed[0]] == 0.0:  # losses so large that their mass under the other data set is no float
        return float(losses[passed[0]])
    return float(math.log((mass[passed[0]] - delta) / lower[passed[0]]))


def _losses(top: int, first: int, last: int, interval: float) -> np.ndarray:
    """Losses number first..last-1, counted from the largest down."""
    return (top - np.arange(first, last)) * interval
