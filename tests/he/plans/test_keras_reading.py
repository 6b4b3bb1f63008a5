"""Networks are read from the graph that Keras runs: folded layers give Keras' logits, what is no chain is refused."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfprivacy_lab.checks import InputError, ModelReadingWarning
from tfprivacy_lab.he.plans.layers import Network
from tfprivacy_lab.models import architectures

layers = keras.layers


def stack(shape, *parts):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Input(shape), *parts])
    rng = np.random.default_rng(2)
    for layer in model.layers:  # no weight at its neutral start; variances above 0
        if layer.get_weights():
            layer.set_weights([rng.uniform(0.2, 1, weight.shape) for weight in layer.get_weights()])
    return model


def same(model, network=None):
    network = network or Network.from_keras(model)
    inputs = np.random.default_rng(0).uniform(-1, 1, (5, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(model(inputs))
    np.testing.assert_allclose(network.evaluate(inputs), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return network


def normalization(**options):
    return layers.Normalization(mean=[1.0, -2.0], variance=[4.0, 0.25], **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: stack((4,), layers.BatchNormalization(), layers.Dense(3), architectures.Square(), layers.Dense(2)),
        lambda: stack(
            (4,), layers.Dense(3), layers.BatchNormalization(scale=False), architectures.Square(), layers.Dense(2)
        ),
        lambda: stack(
            (4,), layers.Dense(3), architectures.Square(), layers.BatchNormalization(center=False), layers.Dense(2)
        ),
        lambda: stack((4,), layers.Dense(3), architectures.Square(), layers.Dense(2), layers.BatchNormalization()),
        lambda: stack((4,), layers.Rescaling(1 / 255, -0.5), layers.Dense(3), architectures.Square(), layers.Dense(2)),
        lambda: stack((2,), normalization(), layers.Dense(3), architectures.Square(), layers.Dense(2)),
        lambda: stack((2,), normalization(invert=True), layers.Dense(3), architectures.Square(), layers.Dense(2)),
        lambda: stack((4,), layers.Dense(5), layers.Dense(3), architectures.Square(), layers.Dense(4), layers.Dense(2)),
        lambda: stack((2,), normalization(), architectures.Square(), layers.Dense(2)),
        lambda: stack((4,), layers.Dense(3), layers.Activation(tf.square), layers.GaussianNoise(1.0), layers.Dense(2)),
        lambda: stack(
            (6,), layers.Reshape((3, 2)), normalization(), layers.Flatten(), layers.Dense(3, tf.square), layers.Dense(2)
        ),
    ],
)
def test_linear_layers_are_folded(make):
    assert same(make()).squares == 1


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "before", [lambda: [], lambda: [normalization()], lambda: [layers.Rescaling(2.0)], lambda: [layers.Rescaling(2, 1)]]
)
@pytest.mark.parametrize(
    "after",
    [
        lambda padding: [layers.BatchNormalization()],
        lambda padding: [layers.AveragePooling2D((2, 3), 2, padding=padding)],
        lambda padding: [layers.BatchNormalization(), layers.AveragePooling2D(2, padding=padding)],
        lambda padding: [layers.GlobalAveragePooling2D()],
    ],
)
def test_layers_about_a_convolution_are_folded(padding, before, after):
    parts = [
        *before(),
        layers.Conv2D(3, (3, 2), padding=padding),
        *after(padding),
        architectures.Square(),
        layers.Flatten(),
    ]
    network = same(stack((7, 6, 2), *parts, layers.Dense(2)))
    scaled_only = len(parts) == 4 and isinstance(parts[1], layers.BatchNormalization)
    if scaled_only:  # still a convolution
        assert len(network.layers[0].windows) > 1


def test_pooling_after_a_square():
    parts = [layers.Conv2D(2, 3), architectures.Square(), layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(2)]
    assert same(stack((6, 6, 1), *parts)).squares == 1


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_last_softmax_or_sigmoid_is_dropped_and_that_is_said(name, apart):
    last = [layers.Dense(3), layers.Activation(name)] if apart else [layers.Dense(3, activation=name)]
    model = stack((4,), layers.Dense(3), architectures.Square(), *last)
    with pytest.warns(ModelReadingWarning, match=f"the {name} of layer .* is dropped.*apply {name} after decryption"):
        network = Network.from_keras(model)
    logits = keras.Model(model.inputs, model.layers[2].output) if apart else model
    if not apart:
        model.layers[-1].activation = keras.activations.linear
        logits = keras.models.clone_model(model)
        logits.set_weights(model.get_weights())
    same(logits, network)
    middle = stack((4,), layers.Dense(3, activation=name), architectures.Square(), layers.Dense(3))
    with pytest.raises(InputError, match="only at the end"):
        Network.from_keras(middle)


SOFTMAXES = {
    "a layer": lambda axis: layers.Softmax(axis),
    "an operation": lambda axis: lambda x: keras.ops.softmax(x, axis),
}


@pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)
def test_a_softmax_of_either_make_is_dropped_at_the_end_and_refused_over_rows(softmax):
    x = layers.Input((4,))
    logits = layers.Dense(3)(architectures.Square()(layers.Dense(3)(x)))
    with pytest.warns(ModelReadingWarning, match="the softmax of layer .* is dropped"):
        network = Network.from_keras(keras.Model(x, softmax(-1)(logits)))
    same(keras.Model(x, logits), network)
    with pytest.raises(InputError, match="softmax along axis 0"):
        Network.from_keras(keras.Model(x, softmax(0)(logits)))


@pytest.mark.parametrize("axis", [3, [-1], (3,), 1, [1, 3]])
def test_a_softmax_layer_goes_along_the_last_axis_however_that_is_said(axis):
    parts = layers.Conv2D(2, 3), architectures.Square(), layers.Conv2D(5, 4), layers.Softmax(axis)
    model = stack((6, 6, 1), *parts)
    if axis in (1, [1, 3]):
        with pytest.raises(InputError, match=r"softmax along axis .*use the last axis"):
            Network.from_keras(model)
    else:
        with pytest.warns(ModelReadingWarning, match="the softmax of layer .* is dropped"):
            Network.from_keras(model)


def used_twice():
    x, dense = layers.Input((4,)), layers.Dense(4)
    return keras.Model(x, layers.Dense(2)(architectures.Square()(dense(dense(x)))))


def shared_over_a_nested_model():
    x, dense = layers.Input((4,)), layers.Dense(4)
    inner = keras.Sequential([layers.Input((4,)), dense, architectures.Square()])
    return keras.Model(x, dense(inner(x)))


def two_outputs():
    x = layers.Input((4,))
    hidden = architectures.Square()(layers.Dense(3)(x))
    return keras.Model(x, [layers.Dense(2)(hidden), hidden])


def parallel():
    x = layers.Input((4,))
    return keras.Model(x, layers.Add()([architectures.Square()(layers.Dense(2)(x)), layers.Dense(2)(x)]))


def parallel_outputs():
    x = layers.Input((4,))
    return keras.Model(x, [architectures.Square()(layers.Dense(4)(x)), layers.Dense(4)(x)])


def two_inputs():
    x, z = layers.Input((4,)), layers.Input((4,))
    return keras.Model([x, z], layers.Dense(2)(architectures.Square()(layers.Dense(3)(layers.Add()([x, z])))))


class Own(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


class OtherDense(keras.layers.Dense):
    def call(self, inputs):
        return super().call(inputs) + 1


class OtherSquare(keras.layers.Layer):
    def call(self, inputs):
        return inputs**4


class NearlyDense(keras.layers.Dense):
    def call(self, inputs):
        return super().call(inputs) * 1.005


OtherDense.__name__ = NearlyDense.__name__ = "Dense"
OtherSquare.__name__ = "Square"


def square(x):
    """Of the name of the square, and nearly one."""
    return x * x * 1.0005


def cube(x):
    """What the layers of a wide network would hide, were rounding not followed through them."""
    return x**3


cube.__name__ = "square"


def with_dict(name="a"):
    x = layers.Input((4,))
    return keras.Model(x, {name: layers.Dense(2)(architectures.Square()(layers.Dense(3)(x)))})


def called_in_training(layer):
    x = layers.Input((4,))
    return keras.Model(x, layers.Dense(2)(architectures.Square()(layer(layers.Dense(3)(x), training=True))))


def with_weights(value):
    model = stack((4,), layers.Dense(3), architectures.Square(), layers.Dense(2))
    model.layers[0].set_weights([np.full((4, 3), value), np.zeros(3)])
    return model


def mixing_rows():
    x = layers.Input((4,))
    return keras.Model(x, layers.Dense(2)(keras.ops.reshape(layers.Dense(4)(x), (-1, 2))))


def of_keras_2():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (mixing_rows, "the operation Reshape"),
        (of_keras_2, "of tf_keras, which is Keras 2"),
        (used_twice, "used more than once; give each place a layer of its own"),
        (shared_over_a_nested_model, "used more than once"),
        (two_outputs, "one input and one output, got .* 1 and 2; make a model of the output"),
        (parallel, "takes 2 tensors; leave out branches"),
        (parallel_outputs, "one input and one output"),
        (two_inputs, "one input and one output"),
        (
            lambda: Own([layers.Input((4,)), layers.Dense(3), architectures.Square(), layers.Dense(2)]),
            "a call of its own",
        ),
        (lambda: keras.Sequential([layers.Dense(3)]), "a built model"),
        (lambda: stack((4,), OtherDense(3), architectures.Square(), layers.Dense(2)), "Dense, a class of yours"),
        (lambda: stack((4,), NearlyDense(3), architectures.Square(), layers.Dense(2)), "Dense, a class of yours"),
        (lambda: stack((4,), layers.Dense(3), OtherSquare(), layers.Dense(2)), "Square, a class of yours"),
        (lambda: stack((4,), layers.Dense(3, square), layers.Dense(2)), "something else than its layers say: off by 0"),
        (
            lambda: stack((784,), layers.Dense(720, cube), layers.Dense(100, cube), layers.Dense(10)),
            "than its layers say",
        ),
        (with_dict, "whose output is a tensor, got .* with a dict of a"),
        (lambda: called_in_training(layers.GaussianNoise(0.001)), "called with training=True"),
        (lambda: called_in_training(layers.BatchNormalization()), "called with training=True"),
        (lambda: with_weights(np.nan), "weights that are not finite"),
        (lambda: with_weights(1e30), "computes numbers that are not finite"),
        (
            lambda: stack((4, 4, 1), layers.Conv2D(2, 2), layers.MaxPooling2D(), architectures.Square()),
            "AveragePooling2D",
        ),
        (lambda: stack((4,), layers.LayerNormalization(), layers.Dense(2)), "use BatchNormalization"),
        (lambda: stack((4,), layers.Dense(3), layers.ReLU(), layers.Dense(2)), "use Square"),
        (lambda: stack((4,), layers.Dense(3), layers.Lambda(tf.square), layers.Dense(2)), "or Square"),
        (lambda: stack((3, 2), layers.Dense(3), architectures.Square(), layers.Dense(2)), "flatten it before"),
    ],
)
def test_what_is_no_chain_of_known_layers_is_refused(make, reason):
    with pytest.raises(InputError, match=reason) as error:
        Network.from_keras(make())
    assert "\n" not in str(error.value)


def test_functional_and_nested_chains_are_read_as_they_run():
    """Created in another order than they run in."""
    x, last, first = layers.Input((4,)), layers.Dense(2), layers.Dense(3)
    inner = keras.Sequential([layers.Input((4,)), first, architectures.Square()])
    same(keras.Model(x, last(inner(x))))
    x = layers.Input((4,))
    same(keras.Model(x, layers.Dense(2)(keras.ops.square(layers.Dense(3)(x)))))
    # A layer that another model uses as well is used once here.
    shared = layers.Dense(3)
    keras.Sequential([layers.Input((4,)), shared])
    same(keras.Sequential([layers.Input((4,)), shared, architectures.Square(), layers.Dense(2)]))


def test_a_convolution_of_one_position_that_leaves_inputs_out_is_no_dense_layer():
    same(stack((4, 4, 1), layers.Conv2D(3, 3, strides=2), layers.Flatten(), architectures.Square(), layers.Dense(2)))


LINEAR = [
    lambda: layers.BatchNormalization(),
    lambda: layers.Rescaling(0.5, 0.25),
    lambda: layers.Dense(4),
    lambda: layers.Dropout(0.5),
    lambda: layers.Activation("linear"),
]


@given(st.lists(st.lists(st.integers(0, len(LINEAR) - 1), max_size=3), min_size=2, max_size=3))
def test_any_chain_of_these_gives_what_keras_gives(stages):
    parts = []
    for number, stage in enumerate(stages):
        parts += ([architectures.Square()] if number else []) + [LINEAR[kind]() for kind in stage] + [layers.Dense(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelReadingWarning)
        assert same(stack((4,), *parts)).squares == len(stages) - 1


def test_models_in_half_precision_are_read():
    """Whose own outputs are off by up to a hundredth."""
    policy = "mixed_bfloat16"
    parts = [layers.Dense(8, dtype=policy), architectures.Square(dtype=policy), layers.Dense(2, dtype=policy)]
    model = stack((64,), *parts)
    inputs = np.random.default_rng(0).uniform(-1, 1, (20, 64)).astype(np.float32)
    expected = np.asarray(model(inputs), np.float64)
    errors = np.abs(Network.from_keras(model).evaluate(inputs) - expected)
    assert 1e-4 < errors.max() / np.abs(expected).max() < 2e-2
