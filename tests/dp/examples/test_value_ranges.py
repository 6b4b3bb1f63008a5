"""Every value of x is within what its layers take before the first step, wherever in the model they are fed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_private_model import private
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.examples.value_ranges import check_values_are_within_ranges

layers = keras.layers
N = 5000


class ColumnsOfATable(keras.Model):
    """Ids in the first column of a table of floats, and an embedding that is called twice."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = layers.Embedding(10, 4), layers.Dense(3)
        self(tf.zeros((2, 3)))

    def call(self, inputs):
        first, second = (self.embedding(tf.cast(inputs[:, i], tf.int32)) for i in (0, 1))
        return self.head(tf.concat([first, second, inputs[:, 2:]], 1))


def functional(first):
    inputs = layers.Input((4,), dtype="int32")
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(first(inputs))))


def lookup_model():
    inputs = layers.Input((4,), dtype="int64")
    codes = layers.IntegerLookup(vocabulary=np.arange(10), num_oov_indices=0)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Rescaling(1.0)(codes)))


MODELS = {
    "Embedding": (lambda: functional(layers.Embedding(10, 4)), 4, "from 0 to 9"),
    "Embedding in a table": (ColumnsOfATable, 3, "from 0 to 9"),
    "in an inner model": (
        lambda: functional(keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(10, 4)])),
        4,
        "from 0 to 9",
    ),
    "CategoryEncoding": (lambda: functional(layers.CategoryEncoding(10, output_mode="multi_hot")), 4, "from 0 to 9"),
    "IntegerLookup": (lookup_model, 4, "its vocabulary"),
}


@pytest.mark.parametrize("wrong", [-1, 10, 2**30])
@pytest.mark.parametrize(("make", "columns", "said"), MODELS.values(), ids=MODELS.keys())
def test_a_value_out_of_range_is_found_in_any_row(make, columns, said, wrong):
    model, x = make(), np.random.default_rng(0).integers(0, 10, (N, columns)).astype(np.float32)
    check_values_are_within_ranges(model, tf.constant(x))
    x[N - 1, 1] = wrong
    with pytest.raises(InputError, match=f"takes, .*{said}, got {wrong} in one of the rows 4096 to 4999"):
        check_values_are_within_ranges(model, tf.constant(x))
    assert not any("call" in layer.__dict__ for layer in model.layers)


class InALoop(keras.Model):
    """Embeds column after column in a loop of the graph."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(10, 3)
        self(tf.zeros((2, 4), tf.int32))

    def call(self, inputs):
        def body(i, total):
            return i + 1, total + self.embedding(inputs[:, i])

        start = tf.constant(0), tf.zeros((tf.shape(inputs)[0], 3))
        return tf.while_loop(lambda i, _: i < 4, body, start)[1]


class OutOfAGraph(keras.Model):
    """Looks at values by Python."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(10, 3)
        self(tf.zeros((2, 4), tf.int32))

    def call(self, inputs):
        return tf.reduce_sum(self.embedding(inputs), 1) * float(tf.ones(()).numpy())


@pytest.mark.parametrize(
    ("make", "options"),
    [(InALoop, {"unknown_layers": "slow"}), (OutOfAGraph, {"compiled": {"run_eagerly": True}})],
)
def test_models_that_no_graph_takes_are_looked_at_too(make, options):
    x, y = np.random.default_rng(0).integers(0, 10, (60, 4)), np.arange(60) % 3
    wrapped = private(make(), **options)
    wrapped.fit(x, y, 12, verbose=0)
    x[50, 1] = 12
    with pytest.raises(InputError, match="got 12"):
        wrapped.fit(x, y, 12, verbose=0)


def test_a_lookup_takes_its_mask():
    inputs = layers.Input((4,), dtype="int64")
    codes = layers.IntegerLookup(vocabulary=[10, 20], mask_token=0, num_oov_indices=0)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Rescaling(1.0)(codes)))
    check_values_are_within_ranges(model, tf.constant([[0, 10, 20, 0]]))
    with pytest.raises(InputError, match="got 11"):
        check_values_are_within_ranges(model, tf.constant([[0, 10, 20, 11]]))


def test_fit_refuses_it_before_its_first_step():
    x, y = np.zeros((60, 4), np.int32), np.arange(60) % 3
    x[33, 2] = 10
    wrapped = private(functional(layers.Embedding(10, 4)))
    with pytest.raises(InputError, match="got 10"):
        wrapped.fit(x, y, 1, steps_per_epoch=1, verbose=0)
    assert wrapped.phases() == []


def test_what_else_the_model_computes_is_left_out(monkeypatch):
    """Looking at ids costs no pass through the layers behind them."""
    seen = []
    head = lambda values: tf.numpy_function(lambda a: seen.append(len(a)) or a, [values], tf.float32, stateful=False)  # noqa: E731
    inputs = layers.Input((4,), dtype="int32")
    hidden = layers.Flatten()(layers.Embedding(10, 4)(inputs))
    between = layers.Lambda(lambda values: tf.ensure_shape(head(values), (None, 16)), output_shape=(16,))
    model = keras.Model(inputs, layers.Dense(3)(between(hidden)))
    seen.clear()  # What building it computed.
    check_values_are_within_ranges(model, tf.zeros((8, 4), tf.int32))
    assert not seen
