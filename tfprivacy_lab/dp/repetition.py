"""The privacy loss of one mechanism used many times, quickly for many counts of uses."""

from __future__ import annotations

import functools
import math

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from scipy import fft, special

# Mass that each tail may lose to infinity, as in dp_accounting.
_TAIL_MASS = 1e-15


def self_compose(
    loss: privacy_loss_distribution.PrivacyLossDistribution, count: int
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """``loss`` composed with itself, as the distribution's own ``self_compose``, several times as quick.

    Training asks for the same loss after each epoch, and a search for the number of steps that fit asks for it
    twenty times: the moments that bound the result's support (Koskela et al. 2021; Gopi, Lee and Wutschitz 2021)
    are kept, and the transform is that of real numbers.

    Args:
        loss: Of one use; dense or sparse.
        count: Uses, >= 1.

    Returns:
        The distribution of the sum of ``count`` losses; the same to rounding of the transform.
    """
    if count == 1:
        return loss
    remove = _self_compose(loss._pmf_remove, count)
    add = None if loss._pmf_add is loss._pmf_remove else _self_compose(loss._pmf_add, count)
    return privacy_loss_distribution.PrivacyLossDistribution(remove, add)


def _self_compose(pmf, count: int) -> pld_pmf.DensePLDPmf:
    """One direction."""
    probs, orders, log_moments = _moments(pmf)
    dense = pmf.to_dense_pmf()
    low, high = _support(len(probs), orders, log_moments, count)
    length = fft.next_fast_len(max(high - low + 1, len(probs)), real=True)
    composed = fft.irfft(fft.rfft(probs, length) ** count, length)
    # The transform wraps around; what is left of the support is at its end.
    composed = np.roll(composed, -low)[: high - low + 1]
    lost = _TAIL_MASS - math.expm1(count * math.log1p(-dense._infinity_mass))
    lowest = dense._lower_loss * count + low
    return pld_pmf.DensePLDPmf(dense._discretization, lowest, composed, lost, dense._pessimistic_estimate)


@functools.lru_cache(maxsize=64)
def _moments(pmf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, orders, and the logarithms of the moment generating function there."""
    probs = np.asarray(pmf.to_dense_pmf()._probs, np.float64)
    orders = np.concatenate([np.arange(-20, 0), np.arange(1, 21)]) / len(probs)
    places = np.arange(len(probs))
    return probs, orders, np.array([special.logsumexp(places * order, b=probs) for order in orders])


def _support(size: int, orders: np.ndarray, log_moments: np.ndarray, count: int) -> tuple[int, int]:
    """Places outside of which the composed loss has at most the tail mass, by Chernoff's bound."""
    bounds = (count * log_moments + math.log(2 / _TAIL_MASS)) / orders
    usable = np.isfinite(bounds)
    high = min([(size - 1) * count, *np.ceil(bounds[usable & (orders > 0)]).astype(int)])
    low = max([0, *np.floor(bounds[usable & (orders < 0)]).astype(int)])
    return int(low), int(high)
