"""ε from a privacy loss distribution: where its hockey-stick divergence reaches δ."""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution


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
    losses = (np.arange(pmf.size) + pmf._lower_loss) * pmf._discretization
    first = int(np.searchsorted(losses, 0.0, side="right"))
    # From the largest loss down, as the masses above a loss are what its divergence is made of.
    losses, probs = losses[first:][::-1], np.asarray(pmf._probs)[first:][::-1]
    above = pmf._infinity_mass + np.cumsum(probs)
    below = np.cumsum(np.exp(-losses) * probs)
    if above.size == 0 or above[-1] - below[-1] <= delta:
        return 0.0
    # The divergence at a loss counts only what is above it; the first loss at which it passes δ ends the search.
    divergence = np.concatenate([[pmf._infinity_mass], above[:-1]])
    with np.errstate(divide="ignore"):  # by logarithms, as neither factor need be a float
        divergence -= np.exp(losses + np.log(np.maximum(np.concatenate([[0.0], below[:-1]]), 0.0)))
    passed = np.flatnonzero(divergence > delta)
    end = int(passed[0]) if passed.size else above.size
    if below[end - 1] == 0.0:  # losses so large that their mass under the other data set is no float
        return float(losses[end - 1])
    return float(math.log((above[end - 1] - delta) / below[end - 1]))
