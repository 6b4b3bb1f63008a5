"""One row per example, asserted as the compiled step runs, whatever the trial before it saw."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import B, N, dataset, private
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import native
from tfprivacy_lab.dp.clipping.ghost import BookKeeping, clipped_sum_example_by_example
from tfprivacy_lab.dp.clipping.rows import after, assert_one_row_per_example, refusal_of
from tfprivacy_lab.dp.training import private_model, steps

layers = keras.layers


@pytest.fixture(params=["compiled", "TensorFlow"])
def is_compiled(request, monkeypatch):
    """Whether the assertion is one compiled operation, or TensorFlow's own."""
    found = request.getfixturevalue("compiled") if request.param == "compiled" else None
    monkeypatch.setattr(native, "operations", lambda: found)
    return found is not None


@pytest.mark.usefixtures("is_compiled")
@pytest.mark.parametrize("length", [0, 1, 4, 6])
def test_another_number_of_rows_is_refused_at_tracing_and_at_run_time(length):
    @tf.function(input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None,))])
    def step(values, weights):
        return after(assert_one_row_per_example(weights, {"the losses": values}), values)

    assert step(tf.zeros((5, 2)), tf.zeros(5)).shape == (5, 2)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        step(tf.zeros((length, 2)), tf.zeros(5))
    assert f"Expected the losses to have one row per example, got {length} rows for 5" in refusal_of(caught.value)
    with pytest.raises(InputError, match=f"got {length} rows for 5"):
        assert_one_row_per_example(5, {"the losses": tf.zeros((length, 2))})


def test_tensors_are_told_apart_by_their_names(is_compiled):
    @tf.function(input_signature=[tf.TensorSpec((None,)), tf.TensorSpec(None, tf.int32), tf.TensorSpec((5, None))])
    def step(rows, labels, fixed):
        return after(assert_one_row_per_example(rows, {"a": rows, "b": [labels, fixed]}), labels)

    assert step(tf.zeros(5), tf.zeros((5, 1), tf.int32), tf.zeros((5, 2))).shape == (5, 1)
    for rows, labels, got in ((5, 4, 4), (6, 6, 5)):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            step(tf.zeros(rows), tf.zeros((labels, 1), tf.int32), tf.zeros((5, 2)))
        assert f"Expected b to have one row per example, got {got} rows for {rows}" in refusal_of(caught.value)
    with pytest.raises(tf.errors.InvalidArgumentError):
        step(tf.zeros(5), tf.zeros((), tf.int32), tf.zeros((5, 2)))


def test_a_step_pays_for_what_its_shapes_leave_open_alone(is_compiled):
    """No conditional around the assertion, and none at all where shapes say it."""

    def kinds(height):
        @tf.function(input_signature=[tf.TensorSpec((height, 2)), tf.TensorSpec((height,))])
        def step(values, weights):
            return after(assert_one_row_per_example(height or weights, {"the losses": values}), values)

        return {operation.type for operation in step.get_concrete_function().graph.get_operations()}

    assert ("TfprivacyLab>AssertRows" if is_compiled else "Assert") in kinds(None)
    assert not {"If", "StatelessIf"} & kinds(None)
    assert not is_compiled or not {"Shape", "StridedSlice"} & kinds(None)
    assert not {"Assert", "TfprivacyLab>AssertRows"} & kinds(5)


def test_another_error_is_no_refusal():
    assert refusal_of(tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [2] vs. [3]")) is None


class OneLoss(keras.losses.Loss):
    """One loss of all examples, as a vector of length one: what a mean over the batch keeps its axis for."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.square(tf.cast(y_true, tf.float32) - y_pred), keepdims=True)[:, 0]


class Folds(layers.Layer):
    """Folds pairs of columns into the batch, then a dense layer, and unfolds; the shapes are not known at tracing."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs):
        folded = tf.reshape(inputs, tf.stack([-1, WIDTH]))
        return tf.reduce_sum(tf.reshape(self.dense(folded), (-1, 2, CLASSES)), 1)


@pytest.fixture
def without_trial(monkeypatch):
    """The trial finds nothing, as it may for a model that behaves in another way once it is compiled."""
    monkeypatch.setattr(private_model, "check_gradients_are_per_example", lambda *_, **__: None)
    monkeypatch.setattr(steps, "check_book_keeping", lambda *_, **__: 1)
    monkeypatch.setattr(private_model.ExampleLosses, "check_labels", lambda *_: None)


@pytest.mark.usefixtures("without_trial")
@pytest.mark.parametrize("options", [{}, {"engine": "reference", "noise_multiplier": 1e-7}], ids=str)
def test_one_loss_for_a_batch_stops_the_step(options):
    x, _ = dataset(N)
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(1)])
    wrapped = private(model, loss=OneLoss(), **options)
    before = model.get_weights()
    with pytest.raises(InputError, match="the losses to have one row per example"):
        wrapped.fit(x, x[:, :1], B, epochs=1, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.usefixtures("without_trial")
def test_a_layer_called_on_folded_batches_stops_the_step():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 2 * WIDTH)).astype(np.float32), rng.integers(0, CLASSES, N)
    model = keras.Sequential([layers.Input((2 * WIDTH,)), Folds()])
    wrapped = private(model)
    before = model.get_weights()
    with pytest.raises(InputError, match=r"the input of layer 'dense.*' to have one row per example.*'slow'"):
        wrapped.fit(x, y, B, epochs=1, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_book_keeping_refuses_weights_of_another_number():
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(1)])
    with pytest.raises(InputError, match="one row per example"):
        BookKeeping(model).gradients(lambda: (model(tf.zeros((4, WIDTH)))[:, 0], None), tf.ones(1))


def test_example_by_example_refuses_inputs_of_another_number():
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(1)])
    stacked = tf.zeros((1, 4, WIDTH)), tf.zeros(4)
    with pytest.raises(InputError, match="x and y to have one row per example, got 1 rows for 4"):
        clipped_sum_example_by_example(model, lambda one: model(one[0])[:, 0], stacked, tf.ones(4), 1.0)
