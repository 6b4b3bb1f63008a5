"""Exact discrete Laplace and Gaussian noise, in integers only, and the Gaussian mechanism on a grid.

Noise that is an integer multiple of a fixed grid, added to a value on the same grid, has no low bits to
leak (see :mod:`.secure_noise`). The samplers reject and accept by comparisons of whole numbers;
their output has exactly the stated distribution, given uniform bits (Canonne, Kamath and Steinke 2020).

Not covered: the time a draw takes depends on its size (Jin et al. 2022); do not let an attacker
time single releases. No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import fractions
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_all_finite, check_finite_number, check_positive_int, settle
from tfprivacy_lab.dp.mechanisms import secure_noise
from tfprivacy_lab.zcdp import zcdp_epsilon

_LARGEST_SIGMA, _LARGEST_DENOMINATOR = 2**40, 2**40
# Products of two terms must fit in a signed 64-bit word; above, Python's whole numbers are used.
_FITS = 2**62


def discrete_laplace(size: int, scale, seed: int | None = None) -> np.ndarray:
    r"""Integers with :math:`\Pr[x] \propto e^{-|x|/b}`, exactly.

    Args:
        size: How many, >= 0.
        scale: Scale b in (0, 2^40]: a whole number, a Fraction, or a float, which is taken as the exact
            binary fraction that it is.
        seed: None for the operating system's cryptographic generator; a number for tests and teaching.

    Returns:
        int64, shape (size,).

    Raises:
        InputError: naming the argument.

    Guarantee: on an integer query of L1 sensitivity Δ, ε = Δ/b and δ = 0 (Ghosh et al. 2009).
    Source: Canonne, Kamath and Steinke 2020, Alg. 2.
    """
    size, scale, words = check_positive_int("size", size, at_least=0), _fraction("scale", scale), _words(seed)
    return _collect(size, lambda count: _laplace_candidates(count, scale, words))


def discrete_gaussian(size: int, sigma_squared, seed: int | None = None) -> np.ndarray:
    r"""Integers with :math:`\Pr[x] \propto e^{-x^2 / 2\sigma^2}`, exactly.

    Args:
        size: How many, >= 0.
        sigma_squared: σ² in (0, 2^80]: a whole number, a Fraction, or a float, taken as the exact binary
            fraction that it is. The variance is at most σ², and indistinguishable from it for σ >= 1.
        seed: None for the operating system's cryptographic generator; a number for tests and teaching.

    Returns:
        int64, shape (size,).

    Raises:
        InputError: naming the argument.

    Guarantee: on an integer query of L2 sensitivity Δ, Δ²/(2σ²)-zCDP, as the continuous Gaussian
    (Canonne, Kamath and Steinke 2020, Thm 4). Source: ibid., Alg. 3.
    """
    size, words = check_positive_int("size", size, at_least=0), _words(seed)
    variance = _fraction("sigma_squared", sigma_squared, at_most=_LARGEST_SIGMA**2)
    t = math.isqrt(math.floor(variance)) + 1
    numerator, denominator = variance.numerator, variance.denominator

    def candidates(count: int) -> np.ndarray:
        drawn = _laplace_candidates(count, fractions.Fraction(t), words)
        # exp(-(|y| - σ²/t)² / 2σ²) over the common denominator 2 σ² t².
        excess = np.abs(drawn).astype(object) * (t * denominator) - numerator
        return drawn[_bernoulli_exp(excess * excess, 2 * numerator * denominator * t * t, words)]

    return _collect(size, candidates)


@dataclasses.dataclass(frozen=True)
class GridGaussian:
    r"""The Gaussian mechanism on a grid: round a sum to multiples of γ, add discrete Gaussian noise.

    Rounding moves each of d coordinates by at most γ/2, so two neighbouring sums that were C apart are at
    most :math:`\Delta = C + \gamma \sqrt{d}` apart when rounded (rounding each record instead would give
    :math:`C + \gamma \sqrt{d} / 2`, Kairouz, Liu and Steinke 2021). The noise is scaled to Δ.

    Attributes:
        l2_norm_clip: Bound C on what one record adds to the sum, in its unit, > 0.
        dimension: Number d of coordinates.
        noise_multiplier: Least noise over Δ, dimensionless, > 0.
        granularity: γ, a power of two, in the sum's unit; small beside C/√d costs next to nothing.

    Raises:
        InputError: naming the argument.

    Guarantee: ρ-zCDP, add-or-remove-one adjacency, of the integers released. Not covered: the rounding of
    floating-point additions inside the caller's sum, and amplification by sampling, which this figure
    does not claim.
    """

    l2_norm_clip: float
    dimension: int
    noise_multiplier: float
    granularity: float

    def __post_init__(self):
        settle(self, l2_norm_clip=check_finite_number("l2_norm_clip", self.l2_norm_clip, above=0, at_most=1e100))
        settle(self, dimension=check_positive_int("dimension", self.dimension, at_most=2**40))
        settle(
            self, noise_multiplier=check_finite_number("noise_multiplier", self.noise_multiplier, above=0, at_most=1e5)
        )
        settle(self, granularity=check_finite_number("granularity", self.granularity, above=0, at_most=1e100))
        granularity = self.granularity
        if math.frexp(granularity)[0] != 0.5:
            nearest = 2.0 ** round(math.log2(granularity))
            raise InputError(f"Expected granularity to be a power of two, got {granularity!r}; use {nearest!r}.")
        if self.noise_multiplier * self.sensitivity / granularity > _LARGEST_SIGMA:
            raise InputError(f"Expected noise of at most 2^40 grid steps, got granularity={granularity!r}; coarsen it.")

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity Δ of the rounded sum, in the sum's unit."""
        return self.l2_norm_clip + self.granularity * math.sqrt(self.dimension)

    @property
    def sigma(self) -> int:
        """The noise's σ in grid steps: a whole number, rounded up."""
        return math.ceil(self.noise_multiplier * self.sensitivity / self.granularity)

    @property
    def stddev(self) -> float:
        """The noise's σ in the sum's unit."""
        return self.sigma * self.granularity

    @property
    def rho(self) -> float:
        r"""Zero-concentrated DP of one release: :math:`\rho = \Delta^2 / 2\sigma^2`."""
        return (self.sensitivity / self.stddev) ** 2 / 2

    def epsilon(self, delta: float, releases: int = 1) -> float:
        """ε at δ of ``releases`` releases: ρ adds up, then :func:`zcdp_epsilon`.

        Raises:
            InputError: naming the argument.
        """
        return zcdp_epsilon(self.rho * check_positive_int("releases", releases), delta)

    def release(self, total, seed: int | None = None) -> np.ndarray:
        """``total`` on the grid, under fresh noise.

        Args:
            total: The sum, ``dimension`` finite numbers in any shape.
            seed: None for the operating system's generator; a number for tests and teaching.

        Returns:
            float64 of the shape of ``total``, each a multiple of ``granularity``.

        Raises:
            InputError: if ``total`` does not fit.
        """
        total = np.asarray(total)
        if total.dtype.kind not in "fiub" or total.size != self.dimension:
            raise InputError(
                f"Expected total to hold dimension={self.dimension} real numbers, got {total.dtype} {total.shape}."
            )
        total = total.astype(np.float64)
        check_all_finite("total", total)
        # A power of two divides exactly. Clipping moves no two values apart, so it costs no sensitivity.
        steps = np.rint(np.clip(total / self.granularity, -(2.0**51), 2.0**51)).astype(np.int64)
        noised = steps + discrete_gaussian(total.size, self.sigma**2, seed).reshape(total.shape)
        return noised * self.granularity


def _laplace_candidates(count: int, scale: fractions.Fraction, words) -> np.ndarray:
    """Independent discrete Laplace draws, at most ``count``: those that Alg. 2 does not reject."""
    t, s = scale.numerator, scale.denominator
    low = _below(t, count, words)
    low = low[_bernoulli_exp(low, t, words)]
    whole, going = np.zeros(len(low), np.int64), np.arange(len(low))
    while going.size:
        going = going[_bernoulli_exp(np.ones(going.size, np.int64), 1, words)]
        whole[going] += 1
    # Alg. 2 divides a geometric variable of scale t by s; whole · t passes 2^63 only beyond 40 in whole.
    magnitude = (low + whole.astype(object) * t) // s if t >= 2**50 else (low + whole * t) // s
    negative = _below(2, len(low), words).astype(bool)
    magnitude, negative = magnitude[~(negative & (magnitude == 0))], negative[~(negative & (magnitude == 0))]
    return np.where(negative, -magnitude, magnitude).astype(np.int64)


def _bernoulli_exp(numerators: np.ndarray, denominator: int, words) -> np.ndarray:
    """True with probability exp(-numerator/denominator), each exactly (Alg. 1)."""
    accepted = np.ones(len(numerators), bool)
    whole, rest = numerators // denominator, numerators % denominator
    going = np.flatnonzero(whole > 0)
    while going.size:  # exp(-1), once for every whole unit, until one fails
        survived = _bernoulli_exp_of_fraction(np.ones(going.size, np.int64), 1, words)
        accepted[going[~survived]] = False
        going = going[survived]
        whole[going] -= 1
        going = going[whole[going] > 0]
    left = np.flatnonzero(accepted)
    accepted[left] = _bernoulli_exp_of_fraction(rest[left], denominator, words)
    return accepted


def _bernoulli_exp_of_fraction(numerators: np.ndarray, denominator: int, words) -> np.ndarray:
    """As :func:`_bernoulli_exp`, for fractions in [0, 1]: the parity of a run of Bernoulli(γ/k)."""
    result, going, k = np.zeros(len(numerators), bool), np.arange(len(numerators)), 1
    while going.size:
        goes_on = (_below(denominator * k, going.size, words) < numerators[going]).astype(bool)
        result[going[~goes_on]] = k % 2 == 1
        going, k = going[goes_on], k + 1
    return result


def _below(bound: int, size: int, words) -> np.ndarray:
    """Uniform whole numbers in [0, bound), by rejection: int64, or Python's own if they would not fit."""
    limbs = 1 if bound <= _FITS else -(-bound.bit_length() // 64)
    largest = 2 ** (64 * limbs) // bound * bound - 1
    result, todo = np.empty(size, np.int64 if limbs == 1 and bound <= _FITS else object), np.arange(size)
    while todo.size:
        drawn = words(todo.size * limbs)
        if result.dtype == object:
            drawn = np.array([int.from_bytes(row.tobytes(), "little") for row in drawn.reshape(-1, limbs)], object)
            good = (drawn <= largest).astype(bool)
            result[todo[good]] = drawn[good] % bound
        else:
            good = drawn <= np.uint64(largest)
            result[todo[good]] = (drawn[good] % np.uint64(bound)).astype(np.int64)
        todo = todo[~good]
    return result


def _collect(size: int, candidates) -> np.ndarray:
    """``size`` draws from batches of independent candidates."""
    parts, missing = [np.empty(0, np.int64)], size
    while missing > 0:
        parts.append(candidates(int(missing * 1.4) + 16)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def _words(seed: int | None):
    if seed is None:
        return secure_noise.random_words
    generator = secure_noise.seeded_generator(seed)
    return lambda count: np.frombuffer(generator.bytes(8 * count), np.uint64)


def _fraction(name: str, value, at_most: int = _LARGEST_SIGMA) -> fractions.Fraction:
    """The exact fraction that ``value`` is."""
    if not isinstance(value, fractions.Fraction):
        value = fractions.Fraction(check_finite_number(name, value, above=0, at_most=at_most))
    if not 0 < value <= at_most:
        raise InputError(f"Expected {name} to be > 0 and <= {at_most}, got {name}={value}.")
    if value.denominator > _LARGEST_DENOMINATOR:
        raise InputError(f"Expected {name} with a denominator of at most 2^40, got {name}={value}; round it up.")
    return value
