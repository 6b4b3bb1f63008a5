r"""ε of one mechanism used many times, from the Fourier transform of its privacy loss.

The transform of a sum of n losses is the n-th power of that of one (Koskela, Jälkö and Honkela 2020). Powers leave
few frequencies, so the sum's distribution is smooth: it need not be written out loss by loss. Masses of blocks of
losses follow from a short transform, exactly, and only the block in which δ is reached is looked at in full.
"""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import fft

from tfprivacy_lab.dp.hockey_stick import crossing, epsilon_for_delta
from tfprivacy_lab.dp.repetition import AT_ONCE, Spectrum, self_compose, spectrum

_FEWEST_BLOCKS = 4096
# Of δ, a use: twice that of a double.
_ROUNDING = 2.0**-52
# Losses above have no exponential that is a float.
_LARGEST_LOSS = 600.0


def epsilon_of_uses(loss: privacy_loss_distribution.PrivacyLossDistribution, count: int, delta: float) -> float:
    """Smallest ε >= 0 for δ of ``count`` uses of one loss; the same figure as by composing it, but for rounding.

    Training asks for it after each epoch, and composing takes longer than an epoch of a small model. The transform is
    of doubles, so δ is rounded by about count · 2^-53: as much is taken off δ twice over. At δ = 1e-5 that shows in no
    digit; at 1e-10 and 10^5 uses it does, and much below there is no finite figure. Above 10^5 uses, and for one, the
    distribution is written out, and nothing is taken off.

    Args:
        loss: Of one use.
        count: Uses, >= 1.
        delta: δ in (0, 1).

    Returns:
        ε of the worse direction; infinite if there is none.
    """
    if count == 1 or count > AT_ONCE:
        return epsilon_for_delta(self_compose(loss, count), delta)
    directions = {id(pmf): pmf for pmf in (loss._pmf_remove, loss._pmf_add)}
    found = [spectrum(pmf, count) for pmf in directions.values()]
    delta -= count * _ROUNDING
    if any(one.infinity_mass > delta for one in found):
        return math.inf
    sizes = [_block_size(one) for one in found]
    if min(sizes) == 1 or any((one.lowest + one.length) * one.interval > _LARGEST_LOSS for one in found):
        return epsilon_for_delta(self_compose(loss, count), delta)
    return max(_epsilon_of_direction(one, size, delta) for one, size in zip(found, sizes, strict=True))


def _block_size(one: Spectrum) -> int:
    """Losses to a block: a power of two that divides the length, with more than two blocks a frequency left."""
    least = max(2 * int(one.places[-1]) + 2, _FEWEST_BLOCKS)
    size = 1
    while one.length % (2 * size) == 0 and one.length // (2 * size) >= least:
        size *= 2
    return size


def _epsilon_of_direction(one: Spectrum, size: int, delta: float) -> float:
    """Blocks from the largest loss down, then the losses of the block in which the divergence reaches δ."""
    blocks = one.length // size
    starts = (one.lowest + size * np.arange(blocks)) * one.interval
    # Those that hold a loss above zero; the others have no say, as ε is not below zero.
    first = int(np.searchsorted(starts, -size * one.interval, side="right"))
    mass, weighted = (_block_sums(one, size, decay)[first:][::-1] for decay in (0.0, one.interval))
    starts = starts[first:][::-1]
    above = one.infinity_mass + np.cumsum(mass)
    below = np.cumsum(np.exp(-starts) * weighted)
    passed = np.flatnonzero(above - np.exp(starts - one.interval) * below > delta)
    if not passed.size and first:
        return 0.0
    place = int(passed[0]) if passed.size else len(starts) - 1
    number = blocks - 1 - place
    losses = starts[place] + one.interval * np.arange(size)[::-1]
    before = (float(above[place - 1]), float(below[place - 1])) if place else (one.infinity_mass, 0.0)
    found = crossing(
        losses, _probabilities(one, number * size, size)[::-1], one.interval, above=before[0], below=before[1],
        delta=delta,
    )  # fmt: skip
    if found is None:  # at rounding's mercy where one block ends, or all losses are above
        found = math.log((above[place] - delta) / below[place]) if above[place] - below[place] > delta else 0.0
    return max(0.0, found)


def _block_sums(one: Spectrum, size: int, decay: float) -> np.ndarray:
    """Σ_i e^{-decay i} p_{b size + i} over the losses i of each block b."""
    turn = 2j * math.pi * one.places / one.length - decay
    # A geometric sum; at frequency zero without decay, all its terms are 1.
    ratio = np.expm1(turn)
    sums = np.divide(np.expm1(size * turn), ratio, out=np.full(len(turn), complex(size)), where=ratio != 0)
    blocks = one.length // size
    short = np.zeros(blocks // 2 + 1, np.complex128)
    short[one.places] = one.coefficients * sums
    return fft.irfft(short, blocks) / size


def _probabilities(one: Spectrum, start: int, count: int) -> np.ndarray:
    """Probabilities of the losses number start..start+count-1."""
    turns = np.exp(np.outer(np.arange(start, start + count), 2j * math.pi * one.places / one.length))
    # Frequencies above zero stand for their conjugates too.
    twice = np.where(one.places == 0, 1.0, 2.0)
    return (turns @ (one.coefficients * twice)).real / one.length
