r"""ε and δ of many uses of several mechanisms, from the Fourier transforms of their privacy losses.

The transform of a sum of losses is the product of theirs (Koskela, Jälkö and Honkela 2020). A transform of doubles is
wrong by some 2^-53 of its total, whatever the size of the part that is looked at. So the losses are weighted first:
with M the moment generating function of all of them together, and tilted probabilities P_t(s) = e^{ts} P(s) / M(t),

.. math:: \delta(\epsilon) = M(t) e^{-t\epsilon} \sum_{s > \epsilon} P_t(s) e^{-t(s-\epsilon)} (1 - e^{\epsilon - s}).

What stands before the sum is, but for a factor, the Rényi bound of order t + 1. With the t that makes it least, the sum
is no small number, and what it is wrong by is a small part of δ, however small that is. (Exponential tilting: Schaller
and Temnov 2008, for aggregate claims.) The sum over s is taken among frequencies, of which few are left.

Two errors, both only ever upwards: the transform is periodic, and each period is counted, as if more loss were above;
and the bound on rounding is added. Of one transform, each output is a sum of masses that pass log2 N butterflies, each
wrong by at most 4 · 2^-53 relative to the masses: 2^-51 log2 N together (Higham 2002, section 24.1). A product of T
transforms is then wrong by at most (|F| + 2^-51 log2 N)^T - |F|^T at each frequency.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import fft

from tfprivacy_lab.dp.accounting.privacy_loss import analytic_gaussian
from tfprivacy_lab.dp.accounting.privacy_loss.loss_grid import (
    MASS_ERROR,
    MOST_POINTS,
    WINDOW,
    GridLoss,
    interval_for,
    losses_of,
)
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import Counts, is_unsampled_gaussian

# What comes around is e^-30 of itself at most.
_DECAY = 30.0
# Transforms up to this length are kept: 16 MiB each.
_LONGEST_KEPT = 2**20
_ULP, _NEGLIGIBLE = 2.0**-51, 1e-24
# Tilts are the powers of two to half these; neighbours do as well as each other.
_LEAST_TILT, _LARGEST_TILT = -60, 100


@functools.lru_cache(maxsize=4096)
def epsilon_of_counts(counts: Counts, delta: float) -> float:
    """Smallest ε >= 0 for δ, of the worse direction.

    Args:
        counts: Pairs of a mechanism and how often it is used, as :func:`.canonical` makes them.
        delta: δ in (0, 1).

    Returns:
        ε, never below the truth; infinite if there is none.
    """
    if (sigma := _only_gaussian(counts)) is not None:
        return analytic_gaussian.gaussian_epsilon(sigma, delta)
    return max(_epsilon_of_direction(direction, delta) for direction in _directions(counts))


def deltas_of_counts(counts: Counts, epsilons: np.ndarray) -> np.ndarray:
    """δ at each of some ε >= 0, of the worse direction, never below the truth."""
    epsilons = np.asarray(epsilons, np.float64)
    if (sigma := _only_gaussian(counts)) is not None:
        return np.exp([analytic_gaussian.log_delta(sigma, epsilon) for epsilon in epsilons.ravel()]).reshape(
            epsilons.shape
        )
    found = [_deltas_of_direction(direction, epsilons.ravel()) for direction in _directions(counts)]
    return np.max(found, axis=0).reshape(epsilons.shape)


def _only_gaussian(counts: Counts) -> float | None:
    """σ, if all there is is one Gaussian without sampling."""
    (mechanism, count), *others = counts
    return mechanism.noise_multiplier if not others and count == 1 and is_unsampled_gaussian(mechanism) else None


def _directions(counts: Counts) -> list[tuple]:
    """Losses and how often each is used, a record removed and one added; one, where they are the same."""
    interval = interval_for(counts)
    both = [(losses_of(mechanism, interval), count) for mechanism, count in counts]
    number = max(len(losses) for losses, _ in both)
    return [tuple((losses[min(way, len(losses) - 1)], count) for losses, count in both) for way in range(number)]


def _epsilon_of_direction(uses: tuple, delta: float) -> float:
    """The point of the grid at which the curve passes δ, and what lies before it by the line between."""
    log_delta = _log_left(uses, delta)
    if log_delta == -math.inf:
        return math.inf
    tilt = _best_tilt(uses, lambda tilt: (_log_renyi(uses, tilt) - log_delta) / _tilt(tilt))
    bound = (_log_renyi(uses, tilt) - log_delta) / _tilt(tilt)
    if bound <= 0:
        return 0.0
    curve = _curve(uses, tilt)
    low, high = 0, math.ceil(bound / curve.interval) + 1
    if curve.log_deltas(np.array([0]))[0] <= log_delta:
        return 0.0
    while curve.log_deltas(np.array([high]))[0] > log_delta:
        low, high = high, 2 * high
        if high * curve.interval > 100 * bound + 1:
            return math.inf
    while high - low > 1:
        tried = np.unique(np.linspace(low, high, curve.quickly(), dtype=np.int64))
        first = int(np.flatnonzero(curve.log_deltas(tried[1:]) <= log_delta)[0])
        low, high = int(tried[first]), int(tried[first + 1])
    before, after = np.exp(curve.log_deltas(np.array([low, high])) - log_delta)
    share = (before - 1) / (before - after)
    return low * curve.interval + math.log1p(share * math.expm1(curve.interval))


def _log_left(uses: tuple, delta: float) -> float:
    """log of what is left of δ for finite losses, once what each mass may be wrong by is taken off."""
    left = delta - _infinite(uses)
    return math.log(left) - MASS_ERROR * sum(count for _, count in uses) if left > 0 else -math.inf


def _infinite(uses: tuple) -> float:
    """Probability of an infinite loss, and what divergences may be too small by (each use by as much: they add up)."""
    finite = math.fsum(count * math.log1p(-loss.infinity_mass) for loss, count in uses if loss.infinity_mass < 1)
    if any(loss.infinity_mass >= 1 for loss, _ in uses):
        return 1.0
    return -math.expm1(finite) + math.fsum(count * loss.error for loss, count in uses)


def _deltas_of_direction(uses: tuple, epsilons: np.ndarray) -> np.ndarray:
    """Between two points of the grid, by the line between them, on which the divergence lies."""
    log_deltas = np.zeros(len(epsilons))
    tilt = None
    tilts = np.zeros(len(epsilons), np.int64)
    for place in np.argsort(epsilons):
        tilt = _best_tilt(uses, lambda t, e=epsilons[place]: _log_renyi(uses, t) - _tilt(t) * e, start=tilt)
        tilts[place] = tilt
    for tilt in np.unique(tilts):
        curve, chosen = _curve(uses, int(tilt)), tilts == tilt
        numbers = np.floor(epsilons[chosen] / curve.interval).astype(np.int64)
        ends = curve.log_deltas(np.concatenate([numbers, numbers + 1]))
        before, after = ends[: len(numbers)], ends[len(numbers) :]
        share = np.expm1(epsilons[chosen] - numbers * curve.interval) / math.expm1(curve.interval)
        share = np.clip(share, 0, 1)
        log_deltas[chosen] = before + np.log1p(share * np.expm1(np.minimum(after - before, 0)))
    log_deltas += MASS_ERROR * sum(count for _, count in uses)
    return np.minimum(1.0, np.exp(log_deltas) + _infinite(uses))


def _tilt(number: int) -> float:
    return 2.0 ** (number / 2)


def _log_renyi(uses: tuple, tilt: int) -> float:
    r"""log M(t) + max_{x > 0} log e^{-tx} (1 - e^{-x}), so that no δ(ε) is above the exponential of this less tε.

    Source: Canonne, Kamath and Steinke 2020, Prop. 12.
    """
    t = _tilt(tilt)
    return math.fsum(count * _cumulants(loss, tilt)[0] for loss, count in uses) - t * math.log1p(1 / t) - math.log1p(t)


def _best_tilt(uses: tuple, bound, start: int | None = None) -> int:
    """Downhill from one over the spread; a convex function over t has one valley.

    Not so small that the period would have to be longer than its window, nor beyond the grid.
    """
    interval = uses[0][0].interval
    spread = math.sqrt(math.fsum(count * _variance(loss) for loss, count in uses)) + interval
    largest = min(_LARGEST_TILT, math.floor(2 * math.log2(2 / interval)))
    least = max(_LEAST_TILT, math.ceil(2 * math.log2(_DECAY / max(MOST_POINTS / 2 * interval, WINDOW * spread))))
    best = min(max(round(2 * math.log2(1 / spread)) if start is None else start, least), largest)
    for way in (1, -1):
        while least <= best + way <= largest and bound(best + way) < bound(best):
            best += way
    return best


@functools.lru_cache(maxsize=1024)
def _cumulants(loss: GridLoss, tilt: int) -> tuple[float, float]:
    """Logarithm of the moment generating function, and variance of the tilted loss."""
    exponents = loss.log_masses + _tilt(tilt) * loss.losses
    largest = float(exponents.max())
    weights = np.exp(exponents - largest)
    total = float(weights.sum())
    weights /= total
    mean = float(weights @ loss.losses)
    return math.log(total) + largest, float(weights @ (loss.losses - mean) ** 2)


@functools.lru_cache(maxsize=1024)
def _variance(loss: GridLoss) -> float:
    mean = float(loss.masses @ loss.losses)
    return float(loss.masses @ (loss.losses - mean) ** 2)


@dataclasses.dataclass(frozen=True, eq=False)
class _Curve:
    """log δ at the points of the grid, from one tilt; an upper bound.

    Attributes:
        places: Frequencies that are not negligible.
        terms: The sum's transform there, so that the real part of their sum, each turned, is the sum.
        error: What the sum may be too small by.
        length: Of the period, in points.
        interval: Of the grid.
        tilt: t.
        log_moment: log M(t).
    """

    places: np.ndarray
    terms: np.ndarray
    error: float
    length: int
    interval: float
    tilt: float
    log_moment: float

    def quickly(self) -> int:
        """How many points are looked at as quickly as one."""
        return 1025 if self._has_many else max(5, min(129, 50_000 // len(self.places)))

    def log_deltas(self, numbers: np.ndarray) -> np.ndarray:
        """At the points of these numbers, without infinite losses."""
        sums = self._all[numbers % self.length] if self._has_many else self._turned(numbers)
        with np.errstate(divide="ignore"):
            return self.log_moment - self.tilt * self.interval * numbers + np.log(np.maximum(sums, 0) + self.error)

    @property
    def _has_many(self) -> bool:
        return len(self.places) > 2000

    @functools.cached_property
    def _all(self) -> np.ndarray:
        """All sums of a period at once."""
        whole = np.zeros(self.length // 2 + 1, np.complex128)
        whole[self.places] = self.terms * np.where(self.places % (self.length / 2) == 0, 1, 0.5)
        return fft.irfft(whole, self.length) * self.length

    def _turned(self, numbers: np.ndarray) -> np.ndarray:
        turns = np.outer(numbers % self.length, self.places) % self.length
        return (np.exp(2j * math.pi / self.length * turns) @ self.terms).real


@functools.lru_cache(maxsize=32)
def _curve(uses: tuple, tilt: int) -> _Curve:
    """The curve of one direction that is good where the tilted sum of losses lies."""
    t, interval = _tilt(tilt), uses[0][0].interval
    variance = math.fsum(count * _cumulants(loss, tilt)[1] for loss, count in uses)
    widest = max(_width(loss, tilt) for loss, _ in uses)
    length = _length(math.ceil(max(WINDOW * math.sqrt(variance) + widest, _DECAY / t) / interval) + 1)
    each = [(_transform(loss, tilt, length), count) for loss, count in uses]
    places = np.flatnonzero(sum(count * log_bounds for (_, _, log_bounds), count in each) > math.log(_NEGLIGIBLE))
    log_sizes, log_bounds, angles, relative = 0.0, 0.0, 0.0, 2.0**-46
    for (one, log_size, log_bound), count in each:
        log_sizes, log_bounds = log_sizes + count * log_size[places], log_bounds + count * log_bound[places]
        angles = angles + count * np.angle(one[places])
        relative = relative + count * _ULP * (np.abs(log_bound[places]) + math.pi)
    # Weights of the losses above a point: Σ_j e^{-tjh} (1 - e^{-jh}) e^{iωj}, two geometric series.
    turns = 2j * math.pi * places / length - t * interval
    weights = np.exp(turns) * -math.expm1(-interval) / (np.expm1(turns) * np.expm1(turns - interval))
    weights *= np.where(places % (length / 2) == 0, 1.0, 2.0) / length
    # What is below the lowest loss comes around at the end of the period.
    lowest = sum(loss.lowest * count for loss, count in uses) % length
    angles = angles - 2 * math.pi / length * (lowest * places % length)
    wrong = np.exp(log_bounds) * (relative - np.expm1(log_sizes - log_bounds))
    terms = np.exp(log_sizes + 1j * angles) * weights
    rounding = _ULP * math.log2(length) * np.abs(terms).sum() + _NEGLIGIBLE * length * np.abs(weights).max()
    return _Curve(
        places,
        terms,
        float(wrong @ np.abs(weights) + rounding),
        length,
        interval,
        t,
        math.fsum(count * _cumulants(loss, tilt)[0] for loss, count in uses),
    )


def _width(loss: GridLoss, tilt: int) -> float:
    """Between the outer losses that the tilted distribution of one use still knows."""
    known = np.flatnonzero(loss.log_masses + _tilt(tilt) * loss.losses - _cumulants(loss, tilt)[0] > -40)
    return float(known[-1] - known[0]) * loss.interval


def _length(least: int) -> int:
    """A length that the transform is quick at, one of few, so that transforms of one loss serve many counts."""
    step = 2 ** max(1, math.floor(math.log2(least)) - 3)
    return next(parts for parts in (8, 9, 10, 12, 15, 16) if parts * step >= least) * step


def _transform(loss: GridLoss, tilt: int, length: int) -> tuple[np.ndarray, ...]:
    return (_kept_transform if length <= _LONGEST_KEPT else _transformed)(loss, tilt, length)


def _transformed(loss: GridLoss, tilt: int, length: int) -> tuple[np.ndarray, ...]:
    """Transform of the tilted masses of one use; logarithms of its size and of a bound on the true one's."""
    log_weights = loss.log_masses + _tilt(tilt) * loss.losses - _cumulants(loss, tilt)[0]
    weights = np.exp(log_weights)
    rounded = 2.0**-52 * float(weights @ np.abs(np.where(weights > 0, log_weights, 0.0)))
    if len(weights) > length:  # a period holds all of them, in turns
        weights = np.pad(weights, (0, -len(weights) % length)).reshape(-1, length).sum(axis=0)
    found = fft.rfft(weights, length)
    sizes = np.abs(found)
    with np.errstate(divide="ignore"):
        log_sizes, log_bounds = np.log(sizes), np.log(sizes + _ULP * math.log2(length) + rounded)
    return found, log_sizes, log_bounds


_kept_transform = functools.lru_cache(maxsize=8)(_transformed)
