"""Layers that let examples meet, or keep them, are found by trying; random ones that do neither are let through."""

import secrets
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import LOSS, B, N, dataset, private, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import DpSgdRun, TrainingPlan
from tfprivacy_lab.dp.training import planned as training
from tfprivacy_lab.dp.training import private_model
from tfprivacy_lab.dp.trials import isolation
from tfprivacy_lab.dp.trials.isolation import check_gradients_are_per_example

layers = keras.layers
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
        self.noted = self.add_weight(name="noted", shape=shape[1:], dtype="int32", trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.noted.assign(tf.cast(tf.round(inputs[0] * 1000), tf.int32))
        return inputs


class NotedInTrained(layers.Layer):
    """Keeps an example in a weight that is trained."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=shape[1:], initializer="ones")

    def call(self, inputs):
        self.scale.assign(inputs[0])
        return inputs


def stacked(layer):
    return keras.Sequential([layers.Input((WIDTH,)), layer, layers.Dense(CLASSES)])


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


class DrawnInALoop(layers.Layer):
    """Draws in a loop of a graph, whose turns need not come in their order."""

    def call(self, inputs, training=None):
        if not training:
            return inputs

        def body(i, x):
            return i + 1, x * tf.random.uniform((tf.shape(x)[0], 1), 0.5, 1.5)

        return tf.while_loop(lambda i, _: i < 3, body, (tf.constant(0), inputs))[1]


class DrawnNowhere(layers.Layer):
    """Draws what no seed repeats."""

    def call(self, inputs, training=None):
        if not training:
            return inputs
        drawn = tf.numpy_function(
            lambda n: secrets.randbelow(1000) / 100 * np.ones((n, 1)), [tf.shape(inputs)[0]], tf.float64
        )
        return inputs * tf.cast(tf.ensure_shape(drawn, (None, 1)), inputs.dtype)


RANDOM = {
    "dropout": lambda: layers.Dropout(0.5),
    "dropout with a seed": lambda: layers.Dropout(0.5, seed=3),
    "nearly everything dropped": lambda: layers.Dropout(0.9),
    "alpha dropout": lambda: layers.AlphaDropout(0.3),
    "additive": lambda: layers.GaussianNoise(1.0),
    "multiplicative": lambda: layers.GaussianDropout(0.3),
    "home-made generator": Jitter,
    "global generators": Drawn,
    "a loop": DrawnInALoop,
}
PICTURES = {
    "flip": lambda: layers.RandomFlip(),
    "rotation": lambda: layers.RandomRotation(0.2),
    "translation": lambda: layers.RandomTranslation(0.2, 0.2),
    "zoom": lambda: layers.RandomZoom(0.3),
    "contrast": lambda: layers.RandomContrast(0.3),
    "brightness": lambda: layers.RandomBrightness(0.2, value_range=(0, 1)),
    # Where it does not draw, this Keras leaves the picture as large as it is.
    "crop": lambda: keras.Sequential([layers.RandomCrop(4, 4), layers.Resizing(6, 6)]),
    "channels dropped": lambda: layers.SpatialDropout2D(0.5),
}


@pytest.mark.parametrize("layer", RANDOM.values(), ids=RANDOM.keys())
def test_random_layers_are_let_through(layer):
    model = stacked(layer())
    check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))


@pytest.mark.parametrize("layer", [Drawn, DrawnInALoop])
def test_what_mixes_behind_draws_of_tensorflows_is_found(layer):
    model = keras.Sequential([layers.Input((WIDTH,)), layer(), StopMean(), layers.Dense(CLASSES)])
    with pytest.raises(InputError, match="mixes the examples"):
        check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))


def test_draws_that_nothing_repeats_are_refused():
    model = stacked(DrawnNowhere())
    with pytest.raises(InputError, match="draws random numbers that a trial cannot repeat"):
        check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))


@pytest.mark.parametrize("layer", PICTURES.values(), ids=PICTURES.keys())
def test_random_pictures_are_let_through(layer):
    model = keras.Sequential([layers.Input((6, 6, 3)), layer(), layers.Flatten(), layers.Dense(CLASSES)])
    x = np.random.default_rng(0).random((4, 6, 6, 3), np.float32)
    check_gradients_are_per_example(model, *losses_and_batch(model, (x, np.arange(4) % CLASSES)))


def test_random_recurrent_and_attending_layers_are_let_through():
    x = layers.Input((5, 4))
    attended = layers.MultiHeadAttention(2, 3, dropout=0.3)(x, x)
    model = keras.Model(x, layers.Dense(CLASSES)(layers.LSTM(3, dropout=0.3, recurrent_dropout=0.2)(attended)))
    given = np.random.default_rng(0).normal(size=(4, 5, 4)).astype(np.float32)
    check_gradients_are_per_example(model, *losses_and_batch(model, (given, np.arange(4) % CLASSES)))


def losses_and_batch(model, examples, rows=4):
    batch = tuple(tf.constant(part[:rows]) for part in examples)
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
        keras.utils.set_random_seed(11)
        jitter.layers[0].generator.reset_from_seed(4)
        tf.random.uniform(())
        if tried:
            for one in (model, jitter):
                check_gradients_are_per_example(one, *losses_and_batch(one, dataset(N)))
        noise = jitter(np.zeros((2, WIDTH), np.float32), training=True).numpy()
        return [tf.random.uniform((3,)).numpy(), np.random.normal(size=3), noise]

    for one, other in zip(drawn(False), drawn(True), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("layer", "once"), [(lambda: layers.Dropout(0.5), True), (Drawn, False)], ids=["Keras'", "others'"]
)
def test_graphs_are_prepared_anew_only_for_draws_that_need_it(monkeypatch, layer, once):
    """What tf.random.set_seed forgets takes longer than all the rest of a trial."""
    model, seeds = stacked(layer()), []
    set_seed = tf.random.set_seed
    monkeypatch.setattr(tf.random, "set_seed", lambda seed: [seeds.append(seed), set_seed(seed)])
    check_gradients_are_per_example(model, *losses_and_batch(model, dataset(N)))
    assert len(seeds) == 1 if once else len(seeds) > 1


def test_a_trial_converts_no_code():
    """fit does not either, and TensorFlow's conversion of Python's if and for takes longer than the rest of a trial."""
    model, conversion = stacked(layers.Dropout(0.5)), []
    losses_of, batch = losses_and_batch(model, dataset(N))

    def noting(part, training):
        conversion.append(tf.__internal__.autograph.control_status_ctx().status.name)
        return losses_of(part, training)

    check_gradients_are_per_example(model, noting, batch)
    assert set(conversion) == {"DISABLED"}


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


def centred(inputs):
    return inputs - tf.stop_gradient(tf.reduce_mean(inputs, 0))


class InGraph(layers.Layer):
    """Does otherwise in a graph."""

    def call(self, inputs):
        return inputs if tf.executing_eagerly() else centred(inputs)


class OpenHeight(layers.Layer):
    """Does otherwise where the batch's size is open, as in fit."""

    def call(self, inputs):
        return centred(inputs) if inputs.shape[0] is None else inputs


class FixedHeight(layers.Layer):
    """Does otherwise where the batch has a certain size, known beforehand."""

    def call(self, inputs):
        return centred(inputs) if inputs.shape[0] == 5 else inputs


class ByPlace(layers.Layer):
    """Multiplies by the place in the batch, which moves when another example is there."""

    def call(self, inputs):
        return inputs * tf.cast(1 + tf.range(tf.shape(inputs)[0]), tf.float32)[:, tf.newaxis]


class ByNumber(layers.Layer):
    """Divides by how many there are."""

    def call(self, inputs):
        return inputs / tf.cast(tf.shape(inputs)[0], tf.float32)


class NextRow(layers.Layer):
    """Takes from the neighbour, detached."""

    def call(self, inputs):
        return inputs + tf.stop_gradient(tf.roll(inputs, 1, 0))


class Ranks(layers.Layer):
    """Says how many are larger: no derivative, and whole numbers."""

    def call(self, inputs):
        return inputs * (1 + tf.reduce_sum(tf.cast(inputs[:, tf.newaxis] < inputs, tf.float32), 1))


class Leak(layers.Layer):
    """So little of another row that no comparison sees it; a derivative does."""

    def call(self, inputs):
        return inputs + 1e-7 * tf.reduce_sum(inputs, 0)


MEETINGS = [InGraph, OpenHeight, ByPlace, ByNumber, NextRow, Ranks, Leak]


def check(model, x, **how):
    check_gradients_are_per_example(model, *losses_and_batch(model, (x, np.arange(len(x)) % CLASSES), len(x)), **how)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("layer", MEETINGS)
def test_what_meets_in_the_graph_of_fit_is_found_with_the_rows_there_are(layer, scale):
    """Inputs so large that predictions are sure and gradients vanish, too: then the outputs' tell."""
    x = (scale * dataset(N)[0])[:8]
    with pytest.raises(InputError, match="mixes the examples"):
        check(stacked(layer()), x)


def test_what_meets_at_the_height_that_fit_computes_is_found():
    x = dataset(N)[0][:8]
    check(stacked(FixedHeight()), x)
    with pytest.raises(InputError, match="mixes the examples"):
        check(stacked(FixedHeight()), x, height=5)
    with pytest.raises(InputError, match="mixes the examples"):
        private(stacked(FixedHeight())).fit(*dataset(N), B, physical_batch_size=5, steps_per_epoch=1, verbose=0)


class Table(keras.Model):
    """Ids in a column of a table of real numbers; others in between are none."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.names, self.head = layers.Embedding(9, 4), layers.Dense(CLASSES)

    def call(self, inputs):
        tf.debugging.assert_equal(inputs[:, 0], tf.round(inputs[:, 0]))
        tf.debugging.assert_less_equal(tf.abs(inputs), self.limit)
        return self.head(tf.concat([self.names(tf.cast(inputs[:, 0], tf.int32)), inputs[:, 1:]], 1))


@ENGINES
def test_ids_in_a_table_of_real_numbers_stay_ids(engine):
    x = dataset(N)[0]
    x[:, 0] = np.arange(N) % 9
    model = Table(np.abs(x).max())
    model(x[:2])
    wrapped = private(model, engine=engine, noise_multiplier=1.0)
    wrapped.fit(x, np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert wrapped.phases()[0].steps == 1


def test_the_trial_takes_rows_that_are_there():
    x, seen = dataset(N)[0], []

    class Seen(layers.Layer):
        def call(self, inputs):
            def note(rows):
                seen.extend(map(bytes, rows))
                return rows

            return tf.ensure_shape(tf.numpy_function(note, [inputs], tf.float32), inputs.shape)

    private(stacked(Seen()), noise_multiplier=1.0).fit(x, np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert len(set(seen)) >= 8
    assert set(seen) <= set(map(bytes, x))


class OwnCell(layers.Layer):
    """A recurrent cell of one's own."""

    state_size = output_size = 3

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="tanh")

    def call(self, inputs, states):
        new = self.dense(tf.concat([inputs, states[0]], 1))
        return new, [new]


class InTime(layers.Layer):
    """A loop over time in the graph."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, inputs):
        def body(t, state):
            return t + 1, tf.tanh(self.dense(state) + inputs[:, t])

        start = tf.constant(0), tf.zeros_like(inputs[:, 0])
        return tf.while_loop(lambda t, _: t < tf.shape(inputs)[1], body, start)[1]


OVER_TIME = {
    "cell": lambda: layers.RNN(layers.LSTMCell(3)),
    "stacked cells": lambda: layers.RNN([layers.GRUCell(4), layers.SimpleRNNCell(3)]),
    "cell of one's own": lambda: layers.RNN(OwnCell()),
    "both ways": lambda: layers.Bidirectional(layers.GRU(3)),
    "loop": InTime,
}


@pytest.mark.slow_but("*-5")
@pytest.mark.parametrize("time", [5, None])
@pytest.mark.parametrize("layer", OVER_TIME.values(), ids=OVER_TIME.keys())
def test_layers_that_run_over_time_are_let_through(layer, time):
    model = keras.Sequential([layers.Input((time, 4)), layer(), layers.Dense(CLASSES)])
    check(model, np.random.default_rng(0).normal(size=(8, 5, 4)).astype(np.float32))


class ByTraining(layers.Layer):
    """Another function in training, of each example alone."""

    def call(self, inputs, training=None):
        return tf.square(inputs) if training else inputs


def test_what_differs_in_training_alone_is_let_through():
    check(stacked(ByTraining()), dataset(N)[0][:8])


class FromPython(keras.Model):
    """Takes a tensor's value, which a graph has not."""

    def __init__(self):
        super().__init__(name="valued")
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.head(inputs * float(tf.size(inputs[0]).numpy()))


def test_models_that_no_graph_takes_are_refused_by_name_with_the_reason_and_the_way_on():
    x, y = dataset(N)
    model = FromPython()
    model(x[:2])
    with pytest.raises(InputError, match=r"'valued' cannot be computed in a graph.*numpy.*run_eagerly=True"):
        private(model, noise_multiplier=1.0).fit(x, y, B, verbose=0)
    wrapped = private(model, noise_multiplier=1.0, compiled={"run_eagerly": True})
    wrapped.fit(x, y, B, steps_per_epoch=1, verbose=0)
    assert wrapped.phases()[0].steps == 1


class Counter(layers.Layer):
    """Counts its calls in a weight."""

    def build(self, shape):
        self.calls = self.add_weight(name="calls", shape=(), trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.calls.assign_add(1.0)
        return inputs


def test_weights_that_change_whatever_the_examples_are_are_refused_for_that():
    model = stacked(Counter())
    with pytest.raises(InputError, match=r"changes the weight .*calls.* whatever the examples are"):
        check(model, dataset(N)[0][:8])
    assert model.layers[0].calls.numpy() == 0


@pytest.mark.parametrize("eagerly", [False, True])
def test_spectral_normalisation_is_not_said_to_compute_from_examples(eagerly):
    model = stacked(layers.SpectralNormalization(layers.Dense(4), name="bounded"))
    before = weights_of(model)
    with pytest.raises(InputError, match="kernel_constraint") as refused:
        check(model, dataset(N)[0][:8], eagerly=eagerly)
    assert "bounded" in str(refused.value)
    assert "from examples" not in str(refused.value)
    assert np.array_equal(weights_of(model), before)


class Distinct(layers.Layer):
    """Stops where two rows are equal, as no batch need not be."""

    def call(self, inputs):
        equal = tf.reduce_all(inputs[:, tf.newaxis] == inputs, -1)
        tf.debugging.assert_equal(tf.reduce_sum(tf.cast(equal, tf.int32)), tf.shape(inputs)[0], message="twice")
        return inputs


def test_models_that_stop_at_some_batches_are_refused_for_that():
    with pytest.raises(InputError, match=r"stops on examples of x.*twice"):
        check(stacked(Distinct()), dataset(N)[0][:8])


@pytest.mark.parametrize(("rows", "said"), [(1, "one example, or equal ones"), (8, "one example, or equal ones")])
def test_a_trial_that_cannot_see_says_so(rows, said):
    with pytest.warns(UserWarning, match=said):
        check(stacked(layers.Dense(4)), np.ones((rows, WIDTH), np.float32))
    with pytest.raises(InputError, match="mixes the examples"), pytest.warns(UserWarning, match=said):
        check(stacked(ByNumber()), np.ones((rows, WIDTH), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(stacked(layers.Dense(4)), dataset(N)[0][:8])


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_training_tries_a_model_once(engine, monkeypatch):
    tried = []

    def counted(*arguments, **how):
        tried.append(how)
        return check_gradients_are_per_example(*arguments, **how)

    monkeypatch.setattr(isolation, "check_gradients_are_per_example", counted)
    monkeypatch.setattr(private_model, "check_gradients_are_per_example", counted)
    x, y = dataset(N)
    plan, run = TrainingPlan(B, 2, 1.0, 0.5), DpSgdRun(N, B, 1.0, 2 * N // B)
    training.train(stacked(layers.Dense(4)), x, y, plan=plan, run=run, delta=1e-3, seed=0, engine=engine)
    assert len(tried) == 1


@pytest.mark.parametrize("kind", ["mutable", "dense"])
def test_examples_kept_in_a_lookup_table_are_refused(kind):
    """A table is saved with the weights, and is no variable."""

    class Keeps(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            make = tf.lookup.experimental.MutableHashTable if kind == "mutable" else dense_table
            self.table = make(tf.int64, tf.float32, [0.0] * WIDTH)

        def call(self, inputs):
            self.table.insert(tf.range(tf.shape(inputs)[0], dtype=tf.int64), inputs)
            return inputs

    model = keras.Sequential([keras.Input((WIDTH,)), Keeps(), keras.layers.Dense(CLASSES)])
    with pytest.raises(InputError, match="writes into a lookup table"):
        private(model).fit(*dataset(N), B, verbose=0)


def dense_table(keys, values, default):
    return tf.lookup.experimental.DenseHashTable(keys, values, default, empty_key=-1, deleted_key=-2)
