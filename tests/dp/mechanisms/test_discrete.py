"""Discrete Laplace and Gaussian noise against their exact probabilities, and the grid mechanism's account."""

import fractions
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.mechanisms import discrete
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism
from tfprivacy_lab.dp.mechanisms.discrete import GridGaussian, discrete_gaussian, discrete_laplace, zcdp_epsilon

LEVEL = 1e-6


def fits(sample, mass):
    """Chi-square test of whole numbers against unnormalised probabilities, tails pooled to expect ten."""
    support = np.arange(-2_000, 2_001)
    weights = mass(support.astype(float))
    expected = weights / weights.sum() * len(sample)
    seen = np.bincount(np.clip(sample, -2_000, 2_000) + 2_000, minlength=4_001)
    inside = expected >= 10
    seen, expected = (np.append(part[inside], part[~inside].sum()) for part in (seen, expected))
    keep = expected > 1e-3
    return stats.chisquare(seen[keep], expected[keep] * seen[keep].sum() / expected[keep].sum()).pvalue > LEVEL


@pytest.mark.parametrize("sigma_squared", [0.25, 1, 2.5, fractions.Fraction(100, 3), 900])
def test_discrete_gaussian_has_exactly_its_probabilities(sigma_squared):
    sample = discrete_gaussian(60_000, sigma_squared, seed=3)
    for factor, right in ((1.0, True), (0.9**2, False), (1.1**2, False)):
        assert fits(sample, lambda x, v=float(sigma_squared) * factor: np.exp(-(x**2) / (2 * v))) == right


@pytest.mark.parametrize("scale", [fractions.Fraction(3, 10), 1, 2.75, fractions.Fraction(50, 7), 64])
def test_discrete_laplace_has_exactly_its_probabilities(scale):
    sample = discrete_laplace(60_000, scale, seed=4)
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        assert fits(sample, lambda x, b=float(scale) * factor: np.exp(-np.abs(x) / b)) == right


@pytest.mark.parametrize("sigma", [2**20, 2**31 + 1, 2**39])
def test_large_scales_take_whole_numbers_beyond_64_bits(sigma):
    """σ² t² passes 2^64 here; at such scales the law is the normal's but for 1/σ."""
    sample = discrete_gaussian(20_000, sigma**2, seed=5) / sigma
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        assert (stats.kstest(sample / factor, "norm").pvalue > LEVEL) == right
    sample = discrete_laplace(20_000, sigma, seed=6) / sigma
    assert stats.kstest(sample, "laplace").pvalue > LEVEL
    assert len(np.unique(sample)) > 19_500


def test_bernoulli_of_an_exponential_is_exact_also_above_one():
    words = discrete._words(9)
    for numerator, denominator in ((1, 3), (1, 1), (5, 2), (7, 3), (2**70, 2**70 + 1), (3 * 2**65, 2**65)):
        drawn = discrete._bernoulli_exp(np.full(40_000, numerator, object), denominator, words)
        p = math.exp(-numerator / denominator)
        assert stats.binomtest(int(drawn.sum()), 40_000, p).pvalue > LEVEL
        assert stats.binomtest(int(drawn.sum()), 40_000, 0.9 * p).pvalue < LEVEL


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, 2**62 - 1, 2**62, 2**62 + 1, 2**64, 3 * 2**100])
def test_whole_numbers_below_a_bound_are_uniform(bound):
    drawn = discrete._below(bound, 5_000, discrete._words(1))
    assert all(0 <= int(value) < bound for value in drawn)
    if bound > 1:
        thirds = min(bound, 3)
        seen = np.bincount([int(value) * thirds // bound for value in drawn], minlength=thirds)
        assert stats.chisquare(seen).pvalue > LEVEL


def test_rejection_keeps_words_of_equal_right():
    """A bound just above half the words' range, where taking the remainder alone would double half the numbers."""
    bound, half = 2**62 - 2**60, 2**61
    drawn = discrete._below(bound, 20_000, discrete._words(2))
    assert stats.binomtest(int(np.count_nonzero(drawn < half)), 20_000, half / bound).pvalue > LEVEL


def test_draws_are_independent_and_seeds_repeat():
    sample = discrete_gaussian(50_000, 9, seed=8)
    for lag in (1, 2, 3, 1_000):
        assert abs(np.corrcoef(sample[lag:], sample[:-lag])[0, 1]) < 6 / np.sqrt(len(sample))
    assert np.array_equal(sample, discrete_gaussian(50_000, 9, seed=8))
    assert np.array_equal(discrete_laplace(5, 9.0, seed=2**90), discrete_laplace(5, 9.0, seed=2**90))
    unseeded = [discrete_gaussian(64, 10**6).tolist() for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    assert discrete_gaussian(0, 1).tolist() == []


def worst_rounding(grid, trials=200):
    """Neighbouring sums at distance C, as far apart as rounding can make them: ulps around half grid steps."""
    rng = np.random.default_rng(0)
    d, gamma, clip = grid.dimension, grid.granularity, grid.l2_norm_clip
    moved = []
    for _ in range(trials):
        direction = rng.choice([-1.0, 1.0], d)
        difference = direction * clip / np.sqrt(d)
        # Start just below a rounding boundary in the direction of the move.
        start = gamma * (rng.integers(-50, 50, d) + 0.5) - direction * 1e-9
        moved.append(np.linalg.norm(np.rint((start + difference) / gamma) - np.rint(start / gamma)) * gamma)
    return np.array(moved)


@pytest.mark.parametrize(("clip", "granularity", "d"), [(1.0, 0.25, 100), (1.0, 2.0**-6, 37), (0.1, 1.0, 9)])
def test_rounding_moves_neighbours_by_at_most_the_stated_sensitivity(clip, granularity, d):
    grid = GridGaussian(clip, d, 1.0, granularity)
    moved = worst_rounding(grid)
    assert moved.max() <= grid.sensitivity * (1 + 1e-12)
    assert moved.max() > 0.7 * grid.sensitivity
    assert moved.max() > clip  # forgetting the grid would state too little


def test_release_lies_on_the_grid_with_the_stated_noise():
    grid = GridGaussian(1.0, 40_000, 2.0, 2.0**-6)
    total = np.random.default_rng(1).normal(size=(200, 200)) * 3
    released = grid.release(total, seed=4)
    assert released.shape == total.shape
    assert np.array_equal(np.rint(released * 64), released * 64)
    noise = (released - np.rint(total * 64) / 64).ravel()
    assert grid.stddev >= 2.0 * grid.sensitivity
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        p = stats.chi2.sf((noise**2).sum() / (factor * grid.stddev) ** 2, noise.size)
        assert (LEVEL / 2 < p < 1 - LEVEL / 2) == right
    assert not np.array_equal(grid.release(total), grid.release(total))
    assert np.isfinite(grid.release(np.full(40_000, 1e300))).all()


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.125, 1.0, 30.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-12])
def test_zcdp_conversion_against_a_scan_and_against_the_rdp_accountant(rho, delta):
    orders = 1 + np.exp(np.linspace(-9, 14, 400_001))
    scan = orders * rho - np.log(orders * delta) / (orders - 1) + np.log1p(-1 / orders)
    assert zcdp_epsilon(rho, delta) == pytest.approx(max(0.0, scan.min()), rel=1e-6, abs=1e-9)
    accountant = dp_accounting.rdp.RdpAccountant(orders=orders[::40])
    accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(2 * rho)))
    assert zcdp_epsilon(rho, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-4, abs=1e-6)
    # The exact Gaussian of the same ρ: the conversion may lose, never win.
    assert zcdp_epsilon(rho, delta) >= GaussianMechanism(1.0, 1 / math.sqrt(2 * rho)).epsilon(delta)


@pytest.mark.parametrize("move", [1, 2, 5])
@pytest.mark.parametrize("sigma", [1, 3])
def test_account_of_discrete_noise_covers_its_exact_divergence(move, sigma):
    """δ(ε) of a discrete Gaussian moved by whole steps, summed term by term."""
    with mpmath.workdps(30):
        mass = {x: mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * sigma**2)) for x in range(-60, 61 + move)}
        total = mpmath.fsum(mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * sigma**2)) for x in range(-80, 81))
        for delta in (1e-2, 1e-5):
            epsilon = zcdp_epsilon(move**2 / (2 * sigma**2), delta)
            ratio = mpmath.exp(epsilon)
            exact = mpmath.fsum(max(mpmath.mpf(0), mass[x] - ratio * mass[x - move]) for x in range(-55, 56)) / total
            assert exact <= delta
            half = mpmath.exp(epsilon / 2)
            assert mpmath.fsum(max(mpmath.mpf(0), mass[x] - half * mass[x - move]) for x in range(-55, 56)) > delta


def test_releases_add_up():
    grid = GridGaussian(1.0, 10, 4.0, 2.0**-12)
    assert grid.rho <= 1 / (2 * 4.0**2)
    assert grid.rho == pytest.approx(1 / 32, rel=1e-3)
    assert grid.epsilon(1e-5, releases=9) == pytest.approx(zcdp_epsilon(9 * grid.rho, 1e-5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discrete_gaussian(-1, 1), "size=-1"),
        (lambda: discrete_gaussian(1, 0), "sigma_squared"),
        (lambda: discrete_gaussian(1, float("nan")), "sigma_squared=nan"),
        (lambda: discrete_gaussian(1, fractions.Fraction(-1, 2)), "sigma_squared to be > 0"),
        (lambda: discrete_gaussian(1, 0.1), "denominator of at most 2.40"),
        (lambda: discrete_laplace(1, 2**41), "scale"),
        (lambda: discrete_laplace(1, 1, seed=1.5), "seed=1.5"),
        (lambda: GridGaussian(1, 1, 1, 0.1), "granularity to be a power of two, got 0.1; use 0.125"),
        (lambda: GridGaussian(1, 1, 1, 2.0**-60), "at most 2.40 grid steps"),
        (lambda: GridGaussian(0, 1, 1, 1), "l2_norm_clip=0"),
        (lambda: GridGaussian(1, 0, 1, 1), "dimension=0"),
        (lambda: GridGaussian(1, 1, -1, 1), "noise_multiplier=-1"),
        (lambda: GridGaussian(1, 2, 1, 1).release([1.0]), "dimension=2 real numbers"),
        (lambda: GridGaussian(1, 2, 1, 1).release([1.0, np.inf]), "total to be finite"),
        (lambda: GridGaussian(1, 2, 1, 1).epsilon(1e-5, releases=0), "releases=0"),
        (lambda: zcdp_epsilon(0, 1e-5), "rho=0"),
        (lambda: zcdp_epsilon(1, 0), "delta=0"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
