r"""The privacy loss of one use of a mechanism, as masses on a grid: never less than the loss itself.

A mass at a loss between two points of the grid is divided between them so that its probabilities under both data sets
stay what they are. That can only raise a divergence ("connect the dots", Doroshenko et al. 2022). Masses are integrals
of positive functions, by Gauss-Legendre on short panels, so that the smallest are as exact as the largest: differences
of a distribution function or of a divergence would leave 2^-53 of one, which a grid of 10^-6 makes 10^-10 of a mass.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import special, stats

from tfprivacy_lab.dp.accounting import dp_accounting_internals
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import (
    Counts,
    Mechanism,
    PoissonSampledGaussian,
    PoissonSampledGaussianGroup,
    PoissonSampledLaplace,
    TruncatedPoissonSampledGaussian,
    is_unsampled_gaussian,
)

# What one mass may be wrong by, relative to itself: quadrature, the exponentials, and the logarithm of their sum.
MASS_ERROR = 2.0**-42
# Of δ, one use: what dp_accounting's differences of normal distribution functions may be wrong by.
_DIFFERENCES_ERROR = 2.0**-48
# Losses further out than so many standard deviations are infinite: a mass of 1.8e-33.
_TAIL = 12.0
# The coarsest grid in use where nothing asks for another; dp_accounting's default.
DISCRETISATION = 1e-4
# A grid of 1/32 of a loss's root mean square makes that of the sum wrong by 1e-4 of itself at most.
_FINE, _COARSE = 32, 1024
# Points: beyond the first a coarser grid does if it is fine still; none is made finer beyond the second, be it for one
# loss or for the sum; and none has more than the third.
_SOON, _MANY, MOST_POINTS = 2**18, 2**20, 2**22
# Standard deviations of the sum that a transform holds.
WINDOW = 24.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_AT_ONCE = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class GridLoss:
    """Masses of one direction.

    Attributes:
        masses: Probabilities, at the losses lowest · interval, (lowest + 1) · interval, …
        lowest: A whole number.
        interval: Of the grid.
        infinity_mass: Probability of an infinite loss.
        error: What a divergence of one use may be too small by, beside ``MASS_ERROR`` of every mass.
    """

    masses: np.ndarray
    lowest: int
    interval: float
    infinity_mass: float = 0.0
    error: float = 0.0

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """Where the masses are."""
        return (self.lowest + np.arange(len(self.masses))) * self.interval

    @functools.cached_property
    def log_masses(self) -> np.ndarray:
        """Their logarithms; minus infinity where there is none."""
        with np.errstate(divide="ignore"):
            return np.log(self.masses)


@functools.lru_cache(maxsize=64)
def losses_of(mechanism: Mechanism, interval: float) -> tuple[GridLoss, ...]:
    """Both directions, a record removed and one added; one, where they are the same.

    Args:
        mechanism: The release.
        interval: Of the grid, > 0.
    """
    if isinstance(mechanism, TruncatedPoissonSampledGaussian):
        return _truncated(mechanism, interval)
    laplace = isinstance(mechanism, PoissonSampledLaplace)
    points, beyond = (_laplace_points if laplace else _gaussian_points)(mechanism, interval), special.ndtr(-_TAIL)
    one_way = is_unsampled_gaussian(mechanism)
    sums = [_Sums(interval) for _ in range(1 if one_way else 2)]
    for weights, log_density, loss in points:
        sums[0].add(weights * np.exp(log_density + loss), loss)
        if not one_way:
            sums[1].add(weights * np.exp(log_density), -loss)
    return tuple(one.loss(0.0 if laplace else beyond) for one in sums)


class _Sums:
    """Point masses, each divided between the two points of the grid about it."""

    def __init__(self, interval: float):
        self._interval, self._sums, self._lowest = interval, np.zeros(0), 0

    def add(self, masses: np.ndarray, losses: np.ndarray) -> None:
        """Losses are first raised by more than they may be rounded by."""
        place = (losses + np.abs(losses) * 2.0**-48) / self._interval
        below = np.floor(place)
        share = np.expm1((below - place) * self._interval) / math.expm1(-self._interval)
        self._widen(int(below.min()), int(below.max()) + 1)
        number, size = below.astype(np.int64) - self._lowest, len(self._sums)
        self._sums += np.bincount(number, masses * (1 - share), size)
        self._sums += np.bincount(number + 1, masses * share, size)

    def _widen(self, first: int, last: int) -> None:
        """Room for the losses number first..last."""
        if not len(self._sums):
            self._lowest = first
        low, high = min(self._lowest, first), self._lowest + len(self._sums) - 1
        self._sums = np.pad(self._sums, (self._lowest - low, max(last - high, 0)))
        self._lowest = low

    def loss(self, beyond: float) -> GridLoss:
        """The whole; ``beyond`` is what lies outside of the points, on either side."""
        self._sums[0] += beyond
        return GridLoss(self._sums, self._lowest, self._interval, beyond)


def _gaussian_points(mechanism: PoissonSampledGaussian | PoissonSampledGaussianGroup, interval: float):
    """Weights, logarithms of the density of noise alone, and losses, of a mixture of Gaussians against it."""
    sigma = mechanism.noise_multiplier
    joined, chances = _joining(mechanism)
    reach, width = _TAIL * sigma, min(sigma, sigma**2) / 32

    def loss(x):
        return _mixture_loss(x, sigma, joined, chances)

    cuts = np.linspace(-reach, joined[-1] + reach, math.ceil((2 * reach + joined[-1]) / width) + 1)
    grid = _grid_between(*loss(cuts[[0, -1]]), interval)
    if len(joined) == 2 and isinstance(mechanism, PoissonSampledGaussian):
        crossings = sigma**2 * _log_odds(grid, mechanism.sampling_probability) + 0.5
    else:
        crossings = _solved(loss, lambda x: _mixture_slope(x, sigma, joined, chances), grid, cuts)
    return _panels(cuts, crossings, lambda x: -((x / sigma) ** 2) / 2 - math.log(sigma * math.sqrt(2 * math.pi)), loss)


def _log_odds(losses: np.ndarray, probability: float) -> np.ndarray:
    """The loss without sampling that becomes this one by sampling."""
    return np.log1p(np.maximum(np.expm1(losses) / probability, -1 + 1e-12))


def _joining(mechanism: PoissonSampledGaussian | PoissonSampledGaussianGroup) -> tuple[np.ndarray, np.ndarray]:
    """How many records may join a step, and the probability of each number."""
    probability = mechanism.sampling_probability
    if isinstance(mechanism, PoissonSampledGaussian):
        joined, chances = np.array([0.0, 1.0]), np.array([1 - probability, probability])
    else:
        joined = np.arange(mechanism.group_size + 1.0)
        chances = stats.binom.pmf(joined, mechanism.group_size, probability)
    return joined[chances > 0], chances[chances > 0]


def _mixture_loss(x: np.ndarray, sigma: float, joined: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """log Σ_j Pr[J = j] e^{j (2x - j) / 2σ²}, exact to the last digits of small losses too."""
    exponents = joined * (2 * x[:, np.newaxis] - joined) / (2 * sigma**2)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        small = np.log1p(np.expm1(exponents) @ chances)
    # Beyond 600 expm1 overflows; far below 0 the logarithm is of what is left where nearly all cancels.
    fits = (exponents.max(axis=1) < 600) & (small > -1)
    return small if fits.all() else np.where(fits, small, special.logsumexp(exponents, b=chances, axis=1))


def _mixture_slope(x: np.ndarray, sigma: float, joined: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """The derivative of the loss."""
    parts = np.log(chances) + joined * (2 * x[:, np.newaxis] - joined) / (2 * sigma**2)
    return special.softmax(parts, axis=1) @ joined / sigma**2


def _laplace_points(mechanism: PoissonSampledLaplace, interval: float):
    """The same under Laplace noise: below 0 and above 1 the loss is the same everywhere."""
    probability, scale = mechanism.sampling_probability, mechanism.noise_multiplier

    def loss(x):
        return np.log1p(probability * np.expm1((2 * x - 1) / scale))

    ends, cuts = np.array([0.0, 1.0]), np.linspace(0, 1, math.ceil(32 / min(1, scale)) + 1)
    crossings = (scale * _log_odds(_grid_between(*loss(ends), interval), probability) + 1) / 2
    yield np.ones(2), math.log(0.5) - ends / scale, loss(ends)
    yield from _panels(cuts, crossings, lambda x: -x / scale - math.log(2 * scale), loss)


def _grid_between(low: float, high: float, interval: float) -> np.ndarray:
    return np.arange(math.ceil(low / interval), math.floor(high / interval) + 1) * interval


def _solved(loss, slope, grid: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Where the loss crosses the grid, by Newton's method between the cuts."""
    at = np.concatenate([loss(part) for part in _pieces(cuts)])
    crossings = []
    for part in _pieces(grid):
        before = np.clip(np.searchsorted(at, part, side="right") - 1, 0, len(cuts) - 2)
        x = np.interp(part, at, cuts)
        for _ in range(4):
            x = np.clip(x - (loss(x) - part) / np.maximum(slope(x), 1e-300), cuts[before], cuts[before + 1])
        crossings.append(x)
    return np.concatenate(crossings)


def _pieces(values: np.ndarray):
    return np.array_split(values, max(1, math.ceil(len(values) / _AT_ONCE)))


def _panels(cuts: np.ndarray, crossings: np.ndarray, log_density, loss):
    """Nodes of the panels between the cuts and the places where the loss crosses the grid, some thousands at once."""
    cuts = np.sort(np.concatenate([cuts, np.clip(crossings, cuts[0], cuts[-1])]))
    starts, widths = cuts[:-1], np.diff(cuts)
    starts, widths = starts[widths > 0], widths[widths > 0]
    for begin, width in zip(_pieces(starts), _pieces(widths), strict=True):
        x = (begin[:, np.newaxis] + width[:, np.newaxis] * (_NODES + 1) / 2).ravel()
        yield (width[:, np.newaxis] * _WEIGHTS / 2).ravel(), log_density(x), loss(x)


def _truncated(mechanism: TruncatedPoissonSampledGaussian, interval: float) -> tuple[GridLoss, ...]:
    """Sampled batches cut at a largest size: dp_accounting's bound, with what its differences may be wrong by."""
    found = privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        *dataclasses.astuple(mechanism), value_discretization_interval=interval
    )
    return tuple(
        GridLoss(one.masses, one.lowest, one.interval, one.infinity_mass, _DIFFERENCES_ERROR)
        for one in dp_accounting_internals.masses_of(found)
    )


@functools.lru_cache(maxsize=256)
def moments(mechanism: Mechanism) -> tuple[float, float]:
    """Mean and mean square of the loss of one use, of the worse direction, or bounds on them near enough."""
    noise = mechanism.noise_multiplier
    if isinstance(mechanism, TruncatedPoissonSampledGaussian):
        return moments(_twice_as_sensitive(mechanism))
    if isinstance(mechanism, PoissonSampledLaplace):
        x = np.linspace(0, 1, 2001)
        weights = np.exp(-x / noise) / (2 * noise) * (x[1] - x[0])
        weights[0], weights[-1] = 0.5 + weights[0] / 2, math.exp(-1 / noise) / 2 + weights[-1] / 2
        loss = np.log1p(mechanism.sampling_probability * np.expm1((2 * x - 1) / noise))
        log_weights = np.log(weights)
    else:
        joined, chances = _joining(mechanism)
        x = np.linspace(-_TAIL * noise, joined[-1] + _TAIL * noise, 4001)
        log_weights = stats.norm.logpdf(x, scale=noise) + math.log(x[1] - x[0])
        loss = _mixture_loss(x, noise, joined, chances)
    with_record, without = np.exp(log_weights + loss), np.exp(log_weights)
    means = np.sum(with_record * loss), -np.sum(without * loss)
    return float(max(means)), float(max(np.sum(with_record * loss**2), np.sum(without * loss**2)))


def span(mechanism: Mechanism) -> float:
    """Between the smallest and the largest loss of one use."""
    noise = mechanism.noise_multiplier
    if isinstance(mechanism, TruncatedPoissonSampledGaussian):
        return 2 * span(_twice_as_sensitive(mechanism))
    if isinstance(mechanism, PoissonSampledLaplace):
        ends = np.log1p(mechanism.sampling_probability * np.expm1(np.array([-1, 1]) / noise))
    else:
        joined, chances = _joining(mechanism)
        ends = _mixture_loss(np.array([-_TAIL * noise, joined[-1] + _TAIL * noise]), noise, joined, chances)
    return float(ends[1] - ends[0])


def _twice_as_sensitive(mechanism: TruncatedPoissonSampledGaussian) -> PoissonSampledGaussian:
    """What bounds it near enough: the same noise on a sample that is not cut, of twice the sensitivity."""
    return PoissonSampledGaussian(mechanism.sampling_probability, mechanism.noise_multiplier / 2)


def interval_for(counts: Counts) -> float:
    """A grid fine against the losses, with a number of points that is bounded: 10^-4 times a power of two."""
    uses = sum(count for _, count in counts)
    square = math.fsum(moments(mechanism)[1] * count for mechanism, count in counts)
    mean = math.fsum(moments(mechanism)[0] * count for mechanism, count in counts)
    typical, widest = math.sqrt(square / uses), max(span(mechanism) for mechanism, _ in counts)
    window = WINDOW * math.sqrt(2 * mean)
    interval = DISCRETISATION
    while (widest + window) / interval > _SOON and typical / (2 * interval) >= _COARSE:
        interval *= 2
    while typical / interval < _FINE and 2 * max(window, widest) / interval <= _MANY:
        interval /= 2
    while (widest + window) / interval > MOST_POINTS:
        interval *= 2
    return interval
