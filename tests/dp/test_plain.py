"""The plain algorithm, and the engine held against it: the same samples, the same noise, the same weights."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.dp.training.test_planned import dataset, gradient, head, initial_weights, mlp
from tfprivacy_lab.dp import PrivateModel, plain
from tfprivacy_lab.dp.sampling import PoissonSample
from tfprivacy_lab.dp.training.noise import GaussianNoise

N, B, STEPS, SEED = 60, 12, 9, 3
SETTINGS = {"batch_size": B, "l2_norm_clip": 0.8, "noise_multiplier": 1.1}


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("build", "physical"), [(head, None), (mlp, 5)])
def test_the_engine_comes_to_the_weights_of_the_plain_algorithm(build, physical):
    """Sampling, clipping, noise, its scale and the divisor, by the public interface alone but for the noise."""
    x, y = dataset(N)
    model = build()
    start = initial_weights(model)
    model.set_weights(start)
    noise, shapes = GaussianNoise(SEED), [array.shape for array in start]
    normals = [[part.numpy() for part in noise.draw(shapes, tf.constant(step, tf.int64))] for step in range(STEPS)]
    samples = [PoissonSample(N, B / N, SEED).indices(step) for step in range(STEPS)]
    given = (gradient, start, x.astype(float), y, samples)
    expected = plain.dp_sgd(*given, normals, learning_rate=0.3, **SETTINGS)

    private = PrivateModel(model, l2_norm_clip=0.8, noise_multiplier=1.1, seed=SEED)
    private.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    private.fit(x, y, B, steps_per_epoch=STEPS, physical_batch_size=physical, verbose=0)
    for found, oracle in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, oracle, atol=2e-5)
    # It would be seen if noise were drawn otherwise, or not at all.
    for others in (normals[::-1], [[0 * array for array in normal] for normal in normals]):
        other = plain.dp_sgd(*given, others, learning_rate=0.3, **SETTINGS)
        assert min(np.abs(a - b).max() for a, b in zip(other, expected, strict=True)) > 1e-3


def test_gradient_is_that_of_the_loss():
    """Against differences of the loss, weight by weight."""
    rng = np.random.default_rng(0)
    weights, x, label = [rng.normal(size=(4, 3)), rng.normal(size=3)], rng.normal(size=4), 2

    def loss(weights):
        logits = x @ weights[0] + weights[1]
        return np.log(np.exp(logits).sum()) - logits[label]

    for k, found in enumerate(plain.softmax_gradient(weights, x, label)):
        for at in np.ndindex(found.shape):
            up, down = ([array.copy() for array in weights] for _ in range(2))
            up[k][at] += 1e-5
            down[k][at] -= 1e-5
            assert found[at] == pytest.approx((loss(up) - loss(down)) / 2e-5, abs=1e-8)


def test_clipping_is_joint_and_leaves_what_is_short():
    short, long = [np.array([[0.3]]), np.array([0.4])], [np.array([[3.0]]), np.array([4.0])]
    assert plain.clip(short, 0.5) == short
    assert np.allclose(np.concatenate([part.ravel() for part in plain.clip(long, 0.5)]), [0.3, 0.4])
    assert plain.clip([np.zeros(2)], 0.5)[0].tolist() == [0, 0]


def test_one_example_moves_the_mean_by_at_most_the_norm_over_the_expected_size():
    """Neighbouring data: the same draw of the others and the same noise, the last example wild, there or not."""
    x, y = dataset(N)
    x, start = x.astype(float), initial_weights(head())
    x[-1] *= 1e5
    (normal,) = plain.standard_normals(start, 1, np.random.default_rng(0))
    with_it, without = (
        plain.noisy_mean(gradient, start, x, y, sample, normal, **SETTINGS) for sample in ([3, 4, N - 1], [3, 4])
    )
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(with_it, without, strict=True)))
    assert moved == pytest.approx(0.8 / B)


def test_samples_are_coins_and_noise_is_standard():
    rng = np.random.default_rng(1)
    drawn = list(plain.poisson_samples(30, 6, 4000, rng))
    sizes, often = np.array([len(sample) for sample in drawn]), np.bincount(np.concatenate(drawn), minlength=30)
    for probability, right in ((0.2, True), (0.19, False), (0.21, False)):
        assert (stats.binomtest(int(sizes.sum()), 30 * 4000, probability).pvalue > 1e-3) == right
    assert stats.chisquare(often).pvalue > 1e-3
    assert sizes.var() == pytest.approx(30 * 0.2 * 0.8, rel=0.1)  # Of fixed size they would have none.
    (normal,) = plain.standard_normals([np.zeros((300, 20)), np.zeros(7)], 1, rng)
    assert [part.shape for part in normal] == [(300, 20), (7,)]
    assert stats.kstest(normal[0].ravel(), "norm").pvalue > 1e-3
    assert max(stats.kstest(scale * normal[0].ravel(), "norm").pvalue for scale in (0.9, 1.1)) < 1e-3


def test_the_example_of_the_docstring():
    found = doctest.testmod(plain)
    assert (found.failed, found.attempted > 0) == (0, True)
