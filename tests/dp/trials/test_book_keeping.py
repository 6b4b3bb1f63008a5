"""Layers whose rules hold are let through, whatever is frozen around them; the others are refused for what they do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.clipping.test_ghost import assert_same
from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import LOSS, B, Folding, N, private, tied
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.ghost import BookKeeping
from tfprivacy_lab.dp.trials.book_keeping import check_book_keeping

layers = keras.layers
TIME = 5


def tried(model, x, **how):
    batch = (tf.constant(x[:8]), tf.constant(np.arange(8) % CLASSES))
    losses_of = lambda part, training: LOSS.call(part[1], model(part[0], training=training))  # noqa: E731
    return check_book_keeping(BookKeeping(model), losses_of, batch, **how)


def table(n=8):
    return np.random.default_rng(0).normal(size=(n, WIDTH)).astype(np.float32)


def sequences(n=8):
    return np.random.default_rng(0).normal(size=(n, TIME, 4)).astype(np.float32)


def tokens(n=8, time=TIME):
    return np.random.default_rng(0).integers(0, 9, (n, time))


def base(functional=True):
    if functional:
        given = layers.Input((WIDTH,))
        return keras.Model(given, layers.Dense(6)(layers.Dense(7, activation="tanh")(given)))
    return keras.Sequential([layers.Input((WIDTH,)), layers.Dense(7, activation="tanh"), layers.Dense(6)])


def first_frozen(inner):
    inner.trainable = True
    inner.layers[-2].trainable = False


def last_marked_in_a_frozen_one(inner):
    inner.trainable = False
    inner.layers[-1].trainable = True


def frozen_twice(inner):
    inner.trainable = False


FREEZING = [first_frozen, last_marked_in_a_frozen_one, frozen_twice]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("freeze", FREEZING)
def test_inner_models_frozen_in_part_are_what_keras_trains(freeze, functional, deep):
    inner = base(functional)
    if deep:
        inner = keras.Sequential([layers.Input((WIDTH,)), inner, layers.Dense(4)])
    freeze(inner)
    model = keras.Sequential([layers.Input((WIDTH,)), inner, layers.Dense(CLASSES)])
    assert_same(model, table())
    assert tried(model, table()) > 0


def test_a_frozen_recurrent_layer_needs_no_rule_for_its_cell():
    model = keras.Sequential([layers.Input((TIME, 4)), layers.RNN(layers.LSTMCell(3)), layers.Dense(CLASSES)])
    # As an argument, Keras freezes the layer and trains its cell all the same.
    model.layers[0].trainable = False
    assert tried(model, sequences()) > 0


class Loop(keras.Model):
    """Runs a layer over time in a loop of the graph."""

    def __init__(self):
        super().__init__()
        self.step, self.head = layers.Dense(4, activation="tanh"), layers.Dense(CLASSES)

    def call(self, inputs):
        def body(t, state):
            return t + 1, self.step(state + inputs[:, t])

        start = tf.constant(0), tf.zeros_like(inputs[:, 0])
        return self.head(tf.while_loop(lambda t, _: t < tf.shape(inputs)[1], body, start)[1])


class Within(Loop):
    """The same in a function of its own."""

    @tf.function
    def run(self, inputs):
        return self.step(inputs[:, 0])

    def call(self, inputs):
        return self.head(self.run(inputs))


@pytest.mark.parametrize("cls", [Loop, Within])
def test_layers_called_in_a_loop_of_the_graph_are_refused_by_name(cls):
    model = cls()
    model(sequences())
    with pytest.raises(InputError, match=r"(called inside a loop|in a tf.function of).*unknown_layers='slow'"):
        tried(model, sequences())


def test_loops_of_the_graph_are_trained_example_by_example():
    model = Loop()
    model(sequences())
    before = model.step.kernel.numpy()
    wrapped = private(model, unknown_layers="slow", noise_multiplier=1.0)
    wrapped.fit(sequences(N), np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert np.all(model.step.kernel.numpy() != before)


class Positions(layers.Layer):
    """Tokens and where they stand, as Keras' tutorials add them up."""

    def __init__(self, time, per_example):
        super().__init__()
        self.token, self.position = layers.Embedding(9, 4), layers.Embedding(time, 4, name="position")
        self.per_example = per_example

    def call(self, inputs):
        positions = tf.range(tf.shape(inputs)[-1])
        if self.per_example:
            positions = tf.broadcast_to(positions, tf.shape(inputs))
        return self.token(inputs) + self.position(positions)


def positioned(time, per_example):
    return keras.Sequential(
        [layers.Input((time,)), Positions(time, per_example), layers.Flatten(), layers.Dense(CLASSES)]
    )


@pytest.mark.parametrize("time", [TIME, 8])
@pytest.mark.parametrize("height", [None, 8])
def test_positions_without_an_axis_for_examples_are_refused_for_that(time, height):
    """As long as the batch is high, too: then only the norms tell."""
    with pytest.raises(InputError) as refused:
        tried(positioned(time, False), tokens(time=time), height=height)
    said = str(refused.value)
    assert "unknown_layers='slow'" in said
    if time != height:
        assert "Layer 'position' is called with" in said
        assert "broadcast_to" in said


def test_positions_with_a_row_per_example_are_let_through():
    assert tried(positioned(TIME, True), tokens()) > 0
    assert_same(positioned(TIME, True), tokens())


def over_time(wrapper):
    return keras.Sequential(
        [layers.Input((TIME, 4)), wrapper(layers.Dense(2, name="in")), layers.Flatten(), layers.Dense(CLASSES)]
    )


def test_time_folded_into_the_batch_is_called_so():
    with pytest.raises(InputError, match=r"Layer 'in' is called with 40 rows for a batch of 8.*the batch was folded"):
        tried(over_time(Folding), sequences())


def test_a_layer_distributed_over_time_is_called_once_per_time_step():
    assert tried(over_time(layers.TimeDistributed), sequences()) > 0
    assert_same(over_time(layers.TimeDistributed), sequences())


def test_tied_weights_are_not_said_to_mix_examples():
    with pytest.raises(InputError, match="used outside its layer") as refused:
        tried(tied(), table() / 10)
    assert "apart" not in str(refused.value)
    assert "unknown_layers='slow'" in str(refused.value)


class Detour(keras.Model):
    """Computes in Python between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4), layers.Dense(CLASSES)

    def call(self, inputs):
        return self.last(tf.ensure_shape(tf.py_function(tf.tanh, [self.first(inputs)], tf.float32), (None, 4)))


def test_python_between_layers_is_trained():
    """Its gradient can be taken once, and has no shape."""
    model = Detour()
    model(table())
    before = model.first.kernel.numpy()
    private(model, noise_multiplier=1.0).fit(table(N), np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert np.all(model.first.kernel.numpy() != before)
