"""Noise from the operating system's generator: its law, its independence, and where its bits come from."""

import os

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.mechanisms import secure_noise

LEVEL = 1e-6


@pytest.fixture
def fixed_words(monkeypatch):
    """The same code on fixed words, so that a statistical test fails never or always."""
    generator = np.random.default_rng(7)
    monkeypatch.setattr(secure_noise, "random_words", lambda count: generator.integers(0, 2**64, count, np.uint64))


def has_deviation(sample, deviation):
    """Two-sided chi-square test of a normal sample's scale."""
    p = stats.chi2.sf((sample.astype(float) ** 2).sum() / deviation**2, sample.size)
    return LEVEL / 2 < p < 1 - LEVEL / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_secure_normal_has_the_stated_scale_and_law(fixed_words, dtype):
    sample = secure_noise.secure_normal((50, 2_001), 2.5, dtype).ravel()
    assert sample.dtype == dtype
    for part in (sample, sample[:5_000], sample[-5_000:], sample[::7]):
        assert has_deviation(part, 2.5)
        assert not has_deviation(part, 0.9 * 2.5)
        assert not has_deviation(part, 1.1 * 2.5)
    assert stats.kstest(sample / 2.5, "norm").pvalue > LEVEL
    assert stats.kstest(sample / 2.5, stats.t(12).cdf).pvalue < LEVEL  # the test sees tails a little too heavy
    beyond = np.count_nonzero(np.abs(sample) > 3 * 2.5)
    assert stats.binomtest(beyond, sample.size, 2 * stats.norm.sf(3)).pvalue > LEVEL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_secure_laplace_has_the_stated_scale_and_law(fixed_words, dtype):
    sample = secure_noise.secure_laplace(100_000, 0.4, dtype)
    assert sample.dtype == dtype
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        # The magnitude of a Laplace variable is exponential, and a sum of those gamma.
        p = stats.gamma(sample.size).sf(np.abs(sample.astype(float)).sum() / (0.4 * factor))
        assert (LEVEL / 2 < p < 1 - LEVEL / 2) == right
    assert stats.kstest(sample / 0.4, "laplace").pvalue > LEVEL
    assert stats.kstest(sample / (0.4 * np.sqrt(2)), "norm").pvalue < LEVEL  # a normal of the same variance


@pytest.mark.parametrize("draw", [secure_noise.secure_normal, secure_noise.secure_laplace])
def test_coordinates_and_calls_are_independent(fixed_words, draw):
    """Also across the halves and chunks that share Box-Muller pairs: x and x², at every lag looked at."""
    lags = [1, 2, 3, secure_noise._CHUNK // 2, secure_noise._CHUNK, secure_noise._CHUNK + 1]
    calls = np.array([draw(3 * secure_noise._CHUNK, 1.0, np.float64) for _ in range(12)])
    calls = (calls - calls.mean()) / calls.std()
    for values in (calls, (calls**2 - 1) / (calls**2).std()):
        correlation = np.corrcoef(values)
        assert np.abs(correlation - np.eye(12)).max() < 6 / np.sqrt(values.shape[1])
        for lag in lags:
            products = values[:, lag:] * values[:, :-lag]
            assert abs(products.mean()) < 6 / np.sqrt(products.size)


def test_single_draws_are_made_of_different_pairs(fixed_words):
    """One sample, many calls: the smallest request must not fall back to fewer independent draws."""
    for draw, law in ((secure_noise.secure_normal, "norm"), (secure_noise.secure_laplace, "laplace")):
        sample = np.array([draw((), 1.0, np.float64) for _ in range(20_000)])
        assert sample.shape == (20_000,)
        assert stats.kstest(sample, law).pvalue > LEVEL


def test_every_gaussian_sums_draws_of_four_pairs(monkeypatch):
    """Moving the words of any one pair moves two samples, each by one of its four draws."""
    count, base = 8, np.random.default_rng(0).integers(0, 2**64, 2 * 16, np.uint64)

    def sample(changed):
        words = base.copy()
        words[changed] ^= np.uint64(1 << 62)
        monkeypatch.setattr(secure_noise, "random_words", lambda wanted: words[:wanted])
        return secure_noise.secure_normal(count, 1.0, np.float64)

    plain = sample([])
    moved = np.array([[sample([pair])[i] != plain[i] for pair in range(16)] for i in range(count)])
    assert moved.sum(axis=1).tolist() == [4] * count
    assert moved.sum(axis=0).tolist() == [2] * 16


def test_words_come_from_the_operating_system(monkeypatch):
    np.random.seed(0)
    asked, urandom = [], os.urandom
    monkeypatch.setattr("os.urandom", lambda count: asked.append(count) or urandom(count))
    first, second = secure_noise.secure_normal(10, 1.0), secure_noise.secure_normal(10, 1.0)
    assert sum(asked) == 2 * 8 * 40
    assert not np.intersect1d(first, second).size


def test_uniforms_are_open_and_symmetric(monkeypatch):
    monkeypatch.setattr(secure_noise, "random_words", lambda count: np.array([0, 2**64 - 1], np.uint64))
    assert secure_noise.secure_uniform(2).tolist() == [2.0**-53, 1 - 2.0**-53]
    monkeypatch.setattr(secure_noise, "random_words", lambda count: np.zeros(count, np.uint64))
    assert np.isfinite(secure_noise.secure_normal(8, 1.0)).all()
    assert np.isfinite(secure_noise.secure_laplace(8, 1.0)).all()


def test_seeds_count_whole():
    draws = [
        secure_noise.seeded_generator(seed).random(4).tolist() for seed in (1, 1, 1 + 2**32, 1 + 2**64, 1 + 2**127)
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4


def test_shapes():
    assert secure_noise.secure_normal((), 1.0).shape == ()
    assert secure_noise.secure_normal((0, 4), 1.0).shape == (0, 4)
    assert secure_noise.secure_normal(np.array([2, 3]), 0.0).tolist() == [[0.0] * 3] * 2
    assert secure_noise.secure_laplace([5], 1.0).shape == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: secure_noise.secure_normal(-1, 1.0), "shape to be a whole number >= 0"),
        (lambda: secure_noise.secure_normal((2, 1.5), 1.0), "shape=1.5"),
        (lambda: secure_noise.secure_normal("3", 1.0), "shape='3'"),
        (lambda: secure_noise.secure_normal(3, -1.0), "stddev=-1.0"),
        (lambda: secure_noise.secure_normal(3, float("nan")), "stddev=nan"),
        (lambda: secure_noise.secure_normal(3, 1e38), "stddev to be a finite number >= 0 and <= 1e.30"),
        (lambda: secure_noise.secure_normal(3, 1.0, np.int32), "dtype to be float32 or float64, got dtype=int32"),
        (lambda: secure_noise.secure_laplace(3, 1.0, "half"), "dtype to be float32 or float64"),
        (lambda: secure_noise.secure_laplace(3, None), "scale=None"),
        (lambda: secure_noise.seeded_generator(0.5), "seed=0.5"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
