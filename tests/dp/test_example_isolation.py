"""Layers that let examples meet, or keep them, are found by trying; random ones that do neither are let through."""

import numpy as np
import pytest
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.example_isolation import check_gradients_are_per_example

from .test_private_model import LOSS, B, N, dataset, private, weights_of
from .test_training import CLASSES, WIDTH

layers = tf.keras.layers
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


class StopMean(layers.Layer):
    """Centres the batch in training alone, and hides it from derivatives."""

    def call(self, inputs, training=None):
        return inputs - tf.stop_gradient(tf.reduce_mean(inputs, 0)) if training else inputs


class StopMeanAlways(layers.Layer):
    def call(self, inputs):
        return inputs - tf.stop_gradient(tf.reduce_mean(inputs, 0))


class StopFirst(layers.Layer):
    """Looks at the first row alone: the first example is never moved by another."""

    def call(self, inputs, training=None):
        return inputs + tf.stop_gradient(inputs[:1]) if training else inputs


class WholeMean(layers.Layer):
    """Mixes what has no derivative at all."""

    def call(self, inputs, training=None):
        return inputs + tf.round(tf.reduce_max(inputs, 0)) if training else inputs


class OneInTen(layers.Layer):
    """A detached batch normalisation with learnt scale, behind a dropout that hides most of it."""

    def call(self, inputs, training=None):
        if not training:
            return inputs
        mean, variance = tf.nn.moments(tf.stop_gradient(inputs), 0)
        return tf.nn.dropout((inputs - mean) * tf.math.rsqrt(variance + 1e-3), 0.5)


class Noted(layers.Layer):
    """Keeps an example's first number in a weight of whole numbers."""

    def build(self, shape):
        self.noted = self.add_weight("noted", shape[1:], dtype="int32", trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.noted.assign(tf.cast(tf.round(inputs[0] * 1000), tf.int32))
        return inputs


class NotedInTrained(layers.Layer):
    """Keeps an example in a weight that is trained."""

    def build(self, shape):
        self.scale = self.add_weight("scale", shape[1:], initializer="ones")

    def call(self, inputs):
        self.scale.assign(inputs[0])
        return inputs


def stacked(layer):
    return tf.keras.Sequential([layers.Input((WIDTH,)), layer, layers.Dense(CLASSES)])


MIXERS = [StopMean, StopMeanAlways, StopFirst, WholeMean, OneInTen]


@ENGINES
@pytest.mark.parametrize("mixer", MIXERS)
def test_examples_that_meet_out_of_derivatives_sight_are_refused(mixer, engine):
    model = stacked(mixer())
    before = weights_of(model)
    wrapped = private(model, engine=engine, noise_multiplier=1.0)
    with pytest.raises(InputError, match="mixes the examples"):
        wrapped.fit(*dataset(N), B, verbose=0)
    assert np.array_equal(weights_of(model), before)
    assert wrapped.phases() == []


@ENGINES
@pytest.mark.parametrize("layer", [Noted, NotedInTrained])
def test_examples_noted_in_any_weight_are_refused(layer, engine):
    model = stacked(layer())
    before = weights_of(model)
    wrapped = private(model, engine=engine, noise_multiplier=1.0, unknown_layers="slow")
    with pytest.raises(InputError, match=r"into the weight .*(noted|scale).*without noise"):
        wrapped.fit(*dataset(N), B, verbose=0)
    assert np.array_equal(weights_of(model), before)
    assert wrapped.phases() == []


class Jitter(layers.Layer):
    """Draws from a generator of its own, whose state is a weight."""

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(5)
        self.kept = self.generator.state

    def call(self, inputs, training=None):
        return inputs + self.generator.normal(tf.shape(inputs)) if training else inputs


class Drawn(layers.Layer):
    """Draws from TensorFlow's, NumPy's and Python's own generators."""

    def call(self, inputs, training=None):
        if not training:
            return inputs
        drawn = tf.numpy_function(lambda n: np.random.normal(size=(n, 1)), [tf.shape(inputs)[0]], tf.float64)
        drawn = tf.ensure_shape(drawn, (None, 1))
        return inputs * tf.random.uniform((tf.shape(inputs)[0], 1)) + tf.cast(drawn, inputs.dtype)


RANDOM = {
    "dropout": lambda: layers.Dropout(0.5),
    "dropout with a seed": lambda: layers.Dropout(0.5, seed=3),
    "nearly everything dropped": lambda: layers.Dropout(0.9),
    "alpha dropout": lambda: layers.AlphaDropout(0.3),
    "additive": lambda: layers.GaussianNoise(1.0),
    "multiplicative": lambda: layers.GaussianDropout(0.3),
    "home-made generator": Jitter,
    "global generators": Drawn,
}
PICTURES = {
    "flip": lambda: layers.RandomFlip(),
    "rotation": lambda: layers.RandomRotation(0.2),
    "translation": lambda: layers.RandomTranslation(0.2, 0.2),
    "zoom": lambda: layers.RandomZoom(0.3),
    "contrast": lambda: layers.RandomContrast(0.3),
    "brightness": lambda: layers.RandomBrightness(0.2, value_range=(0, 1)),
    "crop": lambda: layers.RandomCrop(4, 4),
    "channels dropped": lambda: layers.SpatialDropout2D(0.5),
}


@pytest.mark.parametrize("layer", RANDOM.values(), ids=RANDOM.keys())
def test_random_layers_are_let_through(layer):
    model = stacked(layer())
    check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))


@pytest.mark.parametrize("layer", PICTURES.values(), ids=PICTURES.keys())
def test_random_pictures_are_let_through(layer):
    model = tf.keras.Sequential([layers.Input((6, 6, 3)), layer(), layers.Flatten(), layers.Dense(CLASSES)])
    x = np.random.default_rng(0).random((4, 6, 6, 3), np.float32)
    check_gradients_are_per_example(model, *losses_and_batch(model, (x, np.arange(4) % CLASSES)))


def test_random_recurrent_and_attending_layers_are_let_through():
    x = layers.Input((5, 4))
    attended = layers.MultiHeadAttention(2, 3, dropout=0.3)(x, x)
    model = tf.keras.Model(x, layers.Dense(CLASSES)(layers.LSTM(3, dropout=0.3, recurrent_dropout=0.2)(attended)))
    given = np.random.default_rng(0).normal(size=(4, 5, 4)).astype(np.float32)
    check_gradients_are_per_example(model, *losses_and_batch(model, (given, np.arange(4) % CLASSES)))


def losses_and_batch(model, examples):
    batch = tuple(tf.constant(part[:4]) for part in examples)
    return lambda part, training: LOSS.call(part[1], model(part[0], training=training)), batch


@ENGINES
def test_a_wild_example_among_those_tried_hides_nothing_and_accuses_nobody(engine):
    x, y = dataset(N)
    x[0] = x[2] = 3e38
    with pytest.raises(InputError, match="mixes the examples"):
        private(stacked(StopMean()), engine=engine).fit(x, y, B, verbose=0)
    fine = private(stacked(layers.Dropout(0.5)), engine=engine, noise_multiplier=1.0)
    fine.fit(x, y, B, steps_per_epoch=1, verbose=0)


def test_the_trial_leaves_no_trace_in_what_is_drawn_later():
    model = stacked(layers.Dropout(0.5, seed=3))
    jitter = stacked(Jitter())

    def drawn(tried):
        tf.keras.utils.set_random_seed(11)
        jitter.layers[0].generator.reset_from_seed(4)
        tf.random.uniform(())
        if tried:
            for one in (model, jitter):
                check_gradients_are_per_example(one, *losses_and_batch(one, dataset(N)))
        noise = jitter(np.zeros((2, WIDTH), np.float32), training=True).numpy()
        return [tf.random.uniform((3,)).numpy(), np.random.normal(size=3), noise]

    for one, other in zip(drawn(False), drawn(True), strict=True):
        assert np.array_equal(one, other)


def test_unseeded_draws_stay_unseeded():
    code = tf.random.uniform
    from tensorflow.python.eager import context

    before = context.context()._seed
    try:
        context.context()._seed = None
        model = stacked(layers.Dropout(0.5))
        after = []
        for _ in range(2):
            check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))
            after.append(code((8,)).numpy())
        assert not np.array_equal(*after)
    finally:
        context.context()._seed = before
