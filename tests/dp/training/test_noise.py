"""The draw of a step: distributed as a Gaussian to its tail, and no word of it used twice."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfprivacy_lab.dp.training.noise import GaussianNoise, standard_normal

N = 400_001


def drawn(size=N, key=7, counter=(11, 3)):
    words = [tf.constant(value, tf.uint64) for value in counter]
    return standard_normal(size, np.array([key], np.uint64), tf.stack(words)).numpy()


def test_the_draw_is_gaussian_in_the_middle_and_in_both_tails():
    """Two-sided: the same test rejects nine tenths and eleven tenths of the scale."""
    values = drawn()
    assert stats.kstest(values, "norm").pvalue > 0.01
    for threshold in (2.0, 3.0, 4.0):
        for tail in (np.sum(values > threshold), np.sum(values < -threshold)):
            assert stats.binomtest(int(tail), N, stats.norm.sf(threshold)).pvalue > 0.001
    assert max(stats.kstest(scale * values, "norm").pvalue for scale in (0.9, 1.1)) < 1e-9


def test_neighbours_and_the_two_of_a_pair_are_independent():
    values = drawn(2 * 200_000)
    cosines, sines = values.reshape(2, -1)
    pairs = [(cosines, sines), (cosines**2, sines**2), (values[1:], values[:-1]), (values[1:] ** 2, values[:-1] ** 2)]
    assert min(stats.pearsonr(a, b).pvalue for a, b in pairs) > 0.001


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_any_size(size):
    values = drawn(size)
    assert (values.shape, values.dtype) == ((size,), np.float32)
    assert np.isfinite(values).all()


def test_extreme_words_give_finite_numbers(monkeypatch):
    """A word of zero, the largest, and the smallest, which has no positive counterpart."""
    words = np.array([0, 2**31 - 1, -(2**31), -1, 1], np.int32)
    monkeypatch.setattr(
        tf.raw_ops, "StatelessRandomUniformFullIntV2", lambda **_: tf.constant(np.stack([words, words]))
    )
    radius = np.hypot(*drawn(2 * len(words)).reshape(2, -1))
    np.testing.assert_allclose(radius, [np.sqrt(2 * 32 * np.log(2)), 0, 0, radius[3], radius[4]], atol=1e-3)
    assert np.isfinite(radius).all()
    assert radius.max() > 6.6


def test_no_step_and_no_replica_shares_a_number():
    noise, shapes = GaussianNoise(2**100 + 1), [(40, 30), (17,)]
    draws = [
        np.concatenate([part.numpy().ravel() for part in noise.draw(shapes, tf.constant(step, tf.int64), replica)])
        for step in range(6)
        for replica in range(3)
    ]
    values = np.concatenate(draws)
    # About n^2 / 2^25 of n float32 are the same by chance; a block used twice would give hundreds more at once.
    assert len(values) - len(np.unique(values)) < 60
    assert all(np.intersect1d(a, b).size < 6 for i, a in enumerate(draws) for b in draws[:i])


def radii(drawn):
    """Of Box and Muller's pairs: the words of a draw, whatever its angles."""
    half = (len(drawn) + 1) // 2
    return np.hypot(drawn[: len(drawn) - half], drawn[half:])


def test_draws_of_another_size_share_nothing(operations):
    """A model whose first layer was frozen after a step: later steps of the smaller draw come near none of it."""
    noise = GaussianNoise(3)

    def drawn(size, step):
        return radii(noise.add([tf.zeros(size)], [1.0], tf.constant(step, tf.int64))[0].numpy())

    large = np.sort(drawn(100_000, 1))
    for step in (2, 99, 100, 101, 150):
        small = drawn(1000, step)
        nearest = np.searchsorted(large, small).clip(1, len(large) - 1)
        gaps = np.minimum(np.abs(large[nearest] - small), np.abs(large[nearest - 1] - small))
        # Of 50,000 radii one lies within 1e-5 of any other often, but not of nearly all.
        assert np.mean(gaps < 1e-6) < 0.3
    np.testing.assert_array_equal(drawn(1000, 7), drawn(1000, 7))


def test_a_step_is_always_the_same_and_depends_on_the_whole_seed():
    step = tf.constant(4, tf.int64)
    first, again, other = (GaussianNoise(seed).draw([(50,)], step)[0].numpy() for seed in (5, 5, 5 + 2**96))
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first, other).any()
