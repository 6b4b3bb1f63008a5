"""Adaptive clipping inside a step: the clip follows the quantile, and the step costs what is stated."""

import keras
import numpy as np
import pytest
from scipy import stats

from tests.dp.training.test_planned import dataset, gradient, initial_weights, size
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel, QuantileClip
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.clipping.adaptive import gradient_noise_multiplier
from tfprivacy_lab.dp.sampling import PoissonSample

WIDTH, CLASSES, N, B = 5, 3, 60, 12


def linear(rule, noise_multiplier, rate=0.5, seed=3, **options):
    model = keras.Sequential([keras.layers.Input((WIDTH,)), keras.layers.Dense(CLASSES)])
    model.set_weights(initial_weights(model))
    private = PrivateModel(model, l2_norm_clip=rule, noise_multiplier=noise_multiplier, seed=seed, **options)
    private.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return private


@pytest.mark.parametrize("physical", [None, 5])
def test_the_clip_follows_the_quantile_as_the_rule_says(physical):
    """A loop over examples in NumPy; the count's noise is too small to see, and the gradients' as well."""
    x, y = dataset(N)
    rule = QuantileClip(0.7, B, count_stddev=1e-6, target_quantile=0.8, learning_rate=0.4)
    private = linear(rule, 1e-7)
    weights = [array.astype(np.float64) for array in private.model.get_weights()]
    clips = []
    for step in range(8):
        drawn = PoissonSample(N, B / N, 3).indices(step)
        found = [gradient(weights, x[i].astype(np.float64), y[i]) for i in drawn]
        norms = np.array([size(one) for one in found])
        scales = np.minimum(1, rule.l2_norm_clip / norms)
        for place, array in enumerate(weights):
            array -= 0.5 * sum(scale * one[place] for scale, one in zip(scales, found, strict=True)) / B
        rule = rule.updated(rule.centred_count(norms))
        clips.append(rule.l2_norm_clip)
    private.fit(x, y, B, steps_per_epoch=8, physical_batch_size=physical, verbose=0)
    assert private.l2_norm_clip == pytest.approx(clips[-1], rel=1e-4)
    assert max(clips) > 1.2 * min(clips)
    for array, oracle in zip(private.model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(array, oracle, atol=1e-4)


def test_the_gradients_get_the_noise_that_the_count_leaves():
    """No example weighs anything, so the weights move by noise alone, and the clip by the count's."""
    z, count_stddev, width = 1.0, 0.6, 4000
    rule = QuantileClip(0.3, B, count_stddev=count_stddev, learning_rate=1e-9)
    model = keras.Sequential([keras.layers.Input((width,)), keras.layers.Dense(CLASSES)])
    private = PrivateModel(model, l2_norm_clip=rule, noise_multiplier=z, seed=5)
    private.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()[0]
    x, y = np.ones((N, width), np.float32), np.zeros(N, int)
    private.fit(x, y, B, steps_per_epoch=1, sample_weight=np.zeros(N), verbose=0)
    noise = (model.get_weights()[0] - before).ravel() * B
    claimed = gradient_noise_multiplier(z, count_stddev) * 0.3
    assert claimed > 1.5 * z * 0.3

    def p_value(scale):
        below = stats.chi2.cdf(np.sum((noise / scale) ** 2), noise.size)
        return 2 * min(below, 1 - below)

    assert p_value(claimed) > 1e-3
    assert max(p_value(0.9 * claimed), p_value(1.1 * claimed)) < 1e-9
    assert private.epsilon(1e-5) == epsilon_after(DpSgdRun(N, B, z, 1), 1, 1e-5)


def test_the_count_is_noisy_and_its_noise_is_its_own():
    """Every norm is zero, below the clip: the centred count is half of those drawn, and noise."""
    private, clips = linear(QuantileClip(1.0, B, count_stddev=3.0, learning_rate=0.01), 0.5), [1.0]
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: clips.append(private.l2_norm_clip))
    private.fit(*dataset(N), B, steps_per_epoch=60, sample_weight=np.zeros(N), callbacks=[note], verbose=0)
    drawn = [PoissonSample(N, B / N, 3).indices(step).size for step in range(60)]
    noise = -np.diff(np.log(clips)) / 0.01 * B - np.array(drawn) / 2
    below = stats.chi2.cdf(np.sum((noise / 3.0) ** 2), 60)
    assert 1e-3 < below < 1 - 1e-3
    assert abs(np.mean(noise)) < 3.0 * 3.3 / np.sqrt(60)
    assert len(set(np.round(noise, 3))) > 55


def test_a_rule_for_another_batch_or_engine_is_refused():
    rule = QuantileClip(1.0, B, count_stddev=2.0)
    with pytest.raises(InputError, match=f"QuantileClip.batch_size to be batch_size=20, got {B}"):
        linear(rule, 1.0).fit(*dataset(N), 20, verbose=0)
    with pytest.raises(InputError, match="got a QuantileClip; use engine='fast'"):
        linear(rule, 1.0, engine="reference")
    with pytest.raises(InputError, match="count alone would spend"):
        linear(QuantileClip(1.0, B, count_stddev=0.4), 1.0)


@pytest.mark.parametrize("physical", [None, 4])
def test_engines_take_the_same_steps(physical):
    """DPKerasSGDOptimizer and book-keeping, through the same object, over two calls of fit."""
    x, y = dataset(N)
    after = []
    for engine in ("fast", "reference"):
        private = linear(0.8, 1e-20, engine=engine)
        private.optimizer.momentum = 0.0
        for steps in (3, 2):
            private.fit(x, y, B, steps_per_epoch=steps, physical_batch_size=physical, verbose=0)
        assert [phase.steps for phase in private.phases()] == [5]
        after.append(np.concatenate([array.ravel() for array in private.model.get_weights()]))
    np.testing.assert_allclose(*after, atol=1e-5)
    assert np.abs(after[0] - np.concatenate([a.ravel() for a in initial_weights(private.model)])).max() > 0.05


REFUSED = {
    "Adam": ({}, {"optimizer": "adam"}, "expected SGD with a constant learning rate"),
    "schedule": (
        {},
        {"optimizer": keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9))},
        "constant learning rate",
    ),
    "automatic": ({"clipping_method": "automatic"}, {}, "clips flat, got clipping_method='automatic'"),
    "secure": ({"noise": "secure"}, {}, "got noise='secure'"),
}


@pytest.mark.parametrize(("options", "compiled", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_the_reference_engine_says_what_it_does_not_do(options, compiled, message):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def attempt():
        private = linear(1.0, 1.0, engine="reference", **options)
        private.compile(**({"loss": loss} | compiled))
        private.fit(*dataset(N), B, steps_per_epoch=1, verbose=0)

    with pytest.raises(InputError, match=message):
        attempt()
