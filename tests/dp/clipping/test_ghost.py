"""Book-keeping against back-propagation of one example at a time, on random models of every known layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import native, plain
from tfprivacy_lab.dp.clipping import ghost
from tfprivacy_lab.dp.clipping.ghost import BookKeeping, clip_factors, clipped_sum_example_by_example

pytestmark = pytest.mark.usefixtures("operations")

layers = keras.layers
BATCH, CLASSES = 4, 3
THOROUGH = settings(max_examples=300)


def cross_entropy(labels, outputs):
    return keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


def one_by_one(model, x, y, weights, l2_norm_clip, loss=cross_entropy):
    """The oracle: a tape an example, clipping and summing in float64."""
    total, norms = [np.zeros(variable.shape) for variable in model.trainable_variables], []
    for i in range(len(weights)):
        with tf.GradientTape() as tape:
            value = loss(y[i : i + 1], model(tf.nest.map_structure(lambda a, i=i: a[i : i + 1], x)))[0] * weights[i]
        found = tape.gradient(
            value, [variable.value for variable in model.trainable_variables], unconnected_gradients="zero"
        )
        found = [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in found]
        norms.append(np.sqrt(sum((gradient**2).sum() for gradient in found)))
        total = [a + b for a, b in zip(total, plain.clip(found, l2_norm_clip), strict=True)]
    return total, np.array(norms)


def by_book_keeping(model, x, y, weights, l2_norm_clip, loss=cross_entropy, method="flat"):
    """The clipped sum and the norms, by the code under test."""
    gradients = BookKeeping(model).gradients(lambda: (loss(y, model(x)), None), tf.constant(weights, tf.float32))
    total, norms = gradients.clipped_sum(l2_norm_clip, method)
    return [part.numpy() for part in total], norms.numpy()


def flat(parts):
    return np.concatenate([np.ravel(part) for part in parts]) if parts else np.zeros(0)


def assert_same(model, x, seed=0, loss=cross_entropy, y=None):
    """Sums agree to 1e-5 of their size, clipped and not, with weights of which one is zero."""
    rng = np.random.default_rng(seed)
    batch = tf.nest.flatten(x)[0].shape[0]
    y = rng.integers(0, CLASSES, batch) if y is None else y
    weights = np.append(0.0, rng.uniform(0.1, 3, batch - 1)).astype(np.float32)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.4, size=variable.shape))
    x = tf.nest.map_structure(tf.convert_to_tensor, x)
    _, norms = one_by_one(model, x, y, weights, np.inf, loss)
    for l2_norm_clip in (float(np.median(norms)), 1e9):
        expected, norms = one_by_one(model, x, y, weights, l2_norm_clip, loss)
        found, found_norms = by_book_keeping(model, x, y, weights, l2_norm_clip, loss)
        np.testing.assert_allclose(found_norms, norms, rtol=1e-5, atol=1e-6 * norms.max())
        # Clipping keeps a millionth inside the bound, which shows where examples all but cancel.
        inside = 1e-6 * np.minimum(norms, l2_norm_clip).sum()
        assert np.linalg.norm(flat(found) - flat(expected)) < 1e-5 * np.linalg.norm(flat(expected)) + inside
        assert [part.shape for part in found] == [variable.shape for variable in model.trainable_variables]
    assert norms[0] == 0 < norms[1:].min()


def head(*between):
    return [*between, layers.Flatten(), layers.Dense(CLASSES)]


activations = st.sampled_from([None, "relu", "tanh", "softplus"])
small = st.integers(1, 4)


@st.composite
def convolutions(draw, height, width, channels):
    """A Conv2D or DepthwiseConv2D that fits an image, with anything it may have."""
    padding, kind = draw(st.sampled_from(["same", "valid"])), draw(st.sampled_from(["conv", "depthwise"]))
    kernel = (draw(st.integers(1, min(4, height))), draw(st.integers(1, min(4, width))))
    strides, dilation = (1, 1), (1, 1)
    if draw(st.booleans()):
        strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        strides = strides if kind == "conv" else (strides[0], strides[0])
    elif padding == "same":
        dilation = (draw(small), draw(small)) if kind == "conv" else (draw(small),) * 2
    common = {"strides": strides, "padding": padding, "dilation_rate": dilation, "use_bias": draw(st.booleans())}
    common["activation"] = draw(activations)
    if kind == "depthwise":
        return layers.DepthwiseConv2D(kernel, depth_multiplier=draw(st.integers(1, 2)), **common)
    # Convolutions in groups are compiled anew for every shape; one test below covers them.
    return layers.Conv2D(draw(st.sampled_from([1, 2, 6])), kernel, **common)


@st.composite
def image_models(draw):
    """Image to logits through convolutions and normalisations."""
    height, width, channels = draw(st.integers(3, 9)), draw(st.integers(3, 9)), draw(st.sampled_from([1, 2, 3, 9]))
    stack = [layers.Input((height, width, channels)), draw(convolutions(height, width, channels))]
    norm = draw(st.sampled_from(["none", "layer", "layer over pixels", "group", "instance"]))
    stack += {
        "none": [],
        "layer": [layers.LayerNormalization(scale=draw(st.booleans()))],
        "layer over pixels": [layers.LayerNormalization(axis=[1, 2], center=draw(st.booleans()))],
        "group": [layers.GroupNormalization(1, scale=draw(st.booleans()))],
        "instance": [layers.GroupNormalization(-1)],
    }[norm]
    stack += [layers.Activation("tanh"), layers.Conv2D(2, 2, padding="same", use_bias=draw(st.booleans()))]
    return keras.Sequential(head(*stack)), (BATCH, height, width, channels)


FIXED = {
    "strides": [layers.Conv2D(6, (3, 2), strides=(2, 3), padding="same", activation="tanh")],
    "dilation": [layers.Conv2D(2, 3, dilation_rate=(2, 1), use_bias=False)],
    "one channel": [layers.Conv2D(1, 4, padding="same", activation="softplus")],
    "depthwise": [layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="relu")],
    "depthwise, strides": [layers.DepthwiseConv2D((2, 3), strides=(2, 2), use_bias=False)],
    "over pixels": [layers.Conv2D(2, 2), layers.LayerNormalization(axis=[1, 2], center=False)],
    "one group": [layers.Conv2D(6, 1), layers.GroupNormalization(1, scale=False)],
    "instances": [layers.Conv2D(6, 2, padding="same"), layers.GroupNormalization(-1)],
}


@pytest.mark.parametrize("stack", FIXED.values(), ids=FIXED.keys())
def test_fixed_image_models_on_tensorflow_s_own_operations(stack, monkeypatch):
    """`make test-slow` has every test of this file on both routes."""
    monkeypatch.setattr(native, "operations", lambda: None)
    model = keras.Sequential([layers.Input((7, 6, 3)), *stack, *head()])
    check_image_model((model, (BATCH, 7, 6, 3)), 1)


def check_image_model(built, seed):
    model, shape = built
    assert_same(model, np.random.default_rng(seed).normal(size=shape).astype(np.float32), seed)


@given(image_models(), st.integers(0, 10**6))
def test_random_image_models(built, seed):
    check_image_model(built, seed)


@pytest.mark.long
@THOROUGH
@given(image_models(), st.integers(0, 10**6))
def test_many_random_image_models(built, seed):
    check_image_model(built, seed)


@st.composite
def sequence_models(draw):
    """Tokens to logits through embeddings, dense layers over positions and einsums."""
    length, width = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    stack = [layers.Input((length,)), layers.Embedding(draw(st.integers(2, 6)), width)]
    for kind in draw(st.lists(st.sampled_from(["dense", "einsum", "heads", "per position"]), max_size=3)):
        if kind == "dense":
            width = draw(small)
            stack.append(layers.Dense(width, draw(activations), use_bias=draw(st.booleans())))
        elif kind == "einsum":
            width = draw(small)
            bias = draw(st.sampled_from([None, "e", "te"]))
            stack.append(layers.EinsumDense("btd,de->bte", (length, width), bias_axes=bias, activation="tanh"))
        elif kind == "heads":
            bias = draw(st.sampled_from([None, "hy"]))
            stack.append(layers.EinsumDense("btx,xhy->bthy", (length, 2, width), bias_axes=bias))
            stack.append(layers.EinsumDense("bthy,hyz->btz", (length, width), bias_axes="z"))
        else:
            stack.append(layers.EinsumDense("btd,tde->bte", (length, width)))
    if draw(st.booleans()):
        stack.append(layers.LayerNormalization())
    return keras.Sequential(head(*stack)), (BATCH, length)


def check_sequence_model(built, seed):
    model, shape = built
    vocabulary = model.layers[0].input_dim
    assert_same(model, np.random.default_rng(seed).integers(0, vocabulary, shape), seed)


@given(sequence_models(), st.integers(0, 10**6))
def test_random_sequence_models(built, seed):
    check_sequence_model(built, seed)


@pytest.mark.long
@THOROUGH
@given(sequence_models(), st.integers(0, 10**6))
def test_many_random_sequence_models(built, seed):
    check_sequence_model(built, seed)


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.slow_but("*-4-6-2-1")
@pytest.mark.parametrize(("channels", "filters", "groups", "dilation"), [(4, 6, 2, 1), (9, 9, 3, (2, 1)), (3, 3, 3, 1)])
def test_convolutions_in_groups(channels, filters, groups, dilation):
    stack = [layers.Input((6, 7, channels)), layers.Conv2D(filters, (3, 2), groups=groups, dilation_rate=dilation)]
    assert_same(keras.Sequential(head(*stack)), images(BATCH, 6, 7, channels))


@pytest.mark.parametrize("groups", [1, 2, 3, -1])
def test_group_normalisation(groups):
    stack = [layers.Input((4, 5, 6)), layers.GroupNormalization(groups), layers.Activation("tanh")]
    assert_same(keras.Sequential(head(*stack)), images(BATCH, 4, 5, 6))


def test_one_layer_used_several_times():
    x = layers.Input((5, 5, 2))
    convolution, dense = layers.Conv2D(2, 3, padding="same", activation="tanh"), layers.Dense(6, "tanh")
    above = layers.Flatten()(convolution(convolution(x) + x))
    above = layers.Dense(6)(above)
    model = keras.Model(x, layers.Dense(CLASSES)(dense(dense(dense(above)))))
    assert_same(model, images(BATCH, 5, 5, 2))


def test_shared_embedding_normalisation_and_two_inputs():
    one, other = layers.Input((3,)), layers.Input((4,))
    embedding, normal = layers.Embedding(5, 4), layers.LayerNormalization()
    parts = [layers.GlobalAveragePooling1D()(normal(embedding(tokens))) for tokens in (one, other)]
    model = keras.Model([one, other], layers.Dense(CLASSES)(layers.Concatenate()(parts)))
    rng = np.random.default_rng(0)
    assert_same(model, [rng.integers(0, 5, (BATCH, 3)), rng.integers(0, 5, (BATCH, 4))])


def test_attention_under_a_mask_of_padding_tokens():
    tokens = layers.Input((6,))
    embedded = layers.Embedding(7, 4, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(2, 3)(embedded, embedded)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(attended + embedded))
    model = keras.Model(tokens, layers.Dense(CLASSES)(pooled))
    x = np.random.default_rng(0).integers(1, 7, (BATCH, 6))
    x[:, 4:] = 0
    assert_same(model, x)


def test_nested_models_frozen_layers_and_weights_that_do_nothing():
    inner = keras.Sequential([layers.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(4, trainable=False)])
    unused = layers.Dense(2)
    x = layers.Input((6,))
    hidden = inner(x)
    model = keras.Model(x, [layers.Dense(CLASSES)(hidden), unused(hidden)])
    whole = lambda labels, outputs: cross_entropy(labels, outputs[0])  # noqa: E731
    assert_same(model, images(BATCH, 6), loss=whole)
    found, _ = by_book_keeping(model, images(BATCH, 6), np.zeros(BATCH, int), np.ones(BATCH), 1.0, whole)
    shapes = [tuple(part.shape) for part in found]
    assert (5, 4) not in shapes
    assert all(np.all(part == 0) for part, shape in zip(found, shapes, strict=True) if shape in {(4, 2), (2,)})


LOSSES = {
    "squares": (keras.losses.mean_squared_error, "float"),
    "absolute": (keras.losses.MeanAbsoluteError(reduction="none"), "float"),
    "Huber": (keras.losses.Huber(0.3, reduction="none"), "float"),
    "categorical": (keras.losses.CategoricalCrossentropy(True, 0.1, reduction="none"), "one-hot"),
    "binary": (keras.losses.BinaryCrossentropy(True, reduction="none"), "one-hot"),
}


@pytest.mark.parametrize(("loss", "labels"), LOSSES.values(), ids=LOSSES.keys())
def test_losses(loss, labels):
    rng = np.random.default_rng(3)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH)] if labels == "one-hot" else None
    y = rng.normal(size=(BATCH, CLASSES)).astype(np.float32) if y is None else y
    model = keras.Sequential([layers.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(CLASSES)])
    assert_same(model, images(BATCH, 4), loss=loss, y=y)


WIDE = {
    "few positions, wide kernel": (layers.Input((3, 300)), layers.Dense(300, "tanh")),
    "many positions, small kernel": (layers.Input((200, 3)), layers.Dense(4, "tanh")),
    "many positions, wide kernel": (layers.Input((150, 300)), layers.Dense(300, "tanh")),
    "one position": (layers.Input((400,)), layers.Dense(300, "tanh")),
}


@pytest.mark.parametrize("stack", WIDE.values(), ids=WIDE.keys())
def test_every_way_to_a_norm(stack):
    """Ghost norms and per-example gradients, on both sides of the switch."""
    model = keras.Sequential(head(*stack))
    assert_same(model, images(BATCH, *model.input_shape[1:]))


def test_large_layers_never_have_a_gradient_an_example():
    """Through the graph: no tensor has a batch of kernels."""
    model = keras.Sequential([layers.Input((50, 400)), layers.Dense(300), layers.Flatten(), layers.Dense(CLASSES)])

    @tf.function
    def summed(x, y):
        return BookKeeping(model).gradients(lambda: (cross_entropy(y, model(x)), None)).clipped_sum(1.0)

    graph = summed.get_concrete_function(tf.TensorSpec((16, 50, 400)), tf.TensorSpec((16,), tf.int64)).graph
    functions = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    sizes = [
        np.prod(output.shape) for one in functions for op in one.get_operations() for output in op.outputs
        if output.shape.rank is not None and None not in output.shape
    ]  # fmt: skip
    assert max(sizes) < 16 * 400 * 300 / 2


@pytest.mark.parametrize("method", ghost.METHODS)
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6, 1e12])
def test_no_clipped_gradient_is_longer_than_the_norm(method, size):
    """Each example's part of the sum, alone, measured in float64; kernels with positions that cancel as well."""
    rng = np.random.default_rng(0)
    convolutional = keras.Sequential(head(layers.Input((8, 8, 9)), layers.Conv2D(12, 3, activation="tanh")))
    positions = keras.Sequential(
        [layers.Input((30, 200)), layers.Dense(400), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    )
    for model in (convolutional, positions):
        x = rng.normal(size=(3, *model.input_shape[1:])).astype(np.float32)
        # Equal and opposite positions: the norm is a small difference of large products.
        x[1].reshape(-1, x.shape[-1])[1::2] = -x[1].reshape(-1, x.shape[-1])[::2]
        y = rng.integers(0, 3, 3)
        for l2_norm_clip in (1e-3, 1.0, 50.0):
            for i in range(3):
                weights = np.where(np.arange(3) == i, size, 0.0)
                found, norms = by_book_keeping(model, x, y, weights, l2_norm_clip, method=method)
                length = np.linalg.norm(flat(found).astype(np.float64))
                assert length <= l2_norm_clip * (1 + 1e-6)
                if method == "flat" and norms[i] > 2 * l2_norm_clip:
                    assert length > 0.999 * l2_norm_clip


@pytest.mark.parametrize("method", ghost.METHODS)
def test_a_clipped_gradient_is_no_longer_than_the_norm_by_one_rounding(method):
    """In float64 and against C itself: a norm that was rounded down must not let the sum pass it."""
    rng = np.random.default_rng(5)
    model = keras.Sequential([layers.Input((40,)), layers.Dense(CLASSES)])
    x = rng.normal(size=(60, 40)).astype(np.float32)
    for i in range(60):
        weights = np.where(np.arange(60) == i, 1e5, 0.0)
        found, norms = by_book_keeping(model, x, rng.integers(0, CLASSES, 60), weights, 0.7, method=method)
        # "automatic" divides by the norm and 0.01.
        lost = 0.01 / norms[i] if method == "automatic" else 0.0
        assert 0.7 * (1 - 3e-6 - lost) < np.linalg.norm(flat(found).astype(np.float64)) <= 0.7


def test_examples_without_a_finite_gradient_take_no_part():
    model = keras.Sequential(head(layers.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.GroupNormalization(3)))
    x, y = images(5, 6, 6, 2), np.arange(5) % CLASSES
    expected, _ = by_book_keeping(model, x[:3], y[:3], np.ones(3), 1.0)
    x[3], x[4] = np.inf, np.nan
    found, norms = by_book_keeping(model, x, y, np.ones(5), 1.0)
    assert not np.isfinite(norms[3:]).any()
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-6)


def test_factors_by_hand():
    norms = tf.constant([0.0, 0.5, 1.0, 4.0, np.inf, np.nan])
    np.testing.assert_allclose(clip_factors(norms, 2.0), [1, 1, 1, 0.5, 0, 0], rtol=2e-6)
    np.testing.assert_allclose(
        clip_factors(norms, 2.0, "automatic"), [200, 2 / 0.51, 2 / 1.01, 2 / 4.01, 0, 0], rtol=2e-6
    )
    with pytest.raises(InputError, match="clipping to be one of flat, automatic, got clipping='hard'"):
        clip_factors(norms, 1.0, "hard")


def test_example_by_example_is_the_same_for_layers_without_a_rule():
    model = keras.Sequential([layers.Input((5, 3)), layers.LSTM(4), layers.Dense(CLASSES)])
    x, y, weights = images(BATCH, 5, 3), np.arange(BATCH) % CLASSES, np.float32([0, 1, 2, 0.5])
    expected, norms = one_by_one(model, x, y, weights, 0.3)
    found, found_norms, losses = clipped_sum_example_by_example(
        model,
        lambda one: cross_entropy(one[1], model(one[0])),
        (tf.constant(x), tf.constant(y)),
        tf.constant(weights),
        0.3,
    )
    np.testing.assert_allclose(found_norms, norms, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-5)
    np.testing.assert_allclose(losses, cross_entropy(y, model(x)), rtol=1e-5)


class Doubled(layers.Dense):
    """A Dense that is not one."""

    def call(self, inputs):
        return 2 * super().call(inputs)


UNKNOWN = {
    "LSTM": (lambda: [layers.Input((5, 3)), layers.LSTM(4)], "'lstm_cell' (LSTMCell)"),
    "Conv1D": (lambda: [layers.Input((5, 3)), layers.Conv1D(4, 2, name="c"), layers.Flatten()], "'c' (Conv1D)"),
    "PReLU": (lambda: [layers.Input((5,)), layers.PReLU(name="p")], "'p' (PReLU)"),
    "subclass": (lambda: [layers.Input((5,)), Doubled(4, name="d")], "'d' (Doubled)"),
}


@pytest.mark.parametrize(("stack", "named"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_trainable_layers_without_a_rule_are_refused_by_name(stack, named):
    with pytest.raises(InputError, match="the fast engine has no rule for it") as refusal:
        BookKeeping(keras.Sequential([*stack(), layers.Dense(3)]))
    if "lstm" not in named:
        assert f"Layer {named} is trainable" in str(refusal.value)
    frozen = keras.Sequential([*stack(), layers.Dense(3)])
    for layer in frozen.layers[:-1]:
        layer.trainable = False
    BookKeeping(frozen)


def test_what_mixes_examples_or_belongs_to_none_is_refused():
    for layer, said in (
        (layers.BatchNormalization(name="b"), "'b' is a BatchNormalization in training: it mixes the examples"),
        (layers.Dense(3, activity_regularizer="l2", name="a"), "'a' has an activity_regularizer"),
    ):
        with pytest.raises(InputError, match=said):
            BookKeeping(keras.Sequential([layers.Input((4,)), layer, layers.Dense(3)]))
    with pytest.raises(InputError, match="dtype float64; the fast engine computes in float32"):
        BookKeeping(keras.Sequential([layers.Input((4,)), layers.Dense(3, dtype="float64")]))


def test_the_model_is_left_as_it_was():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(5, "relu"), layers.Dense(CLASSES)])
    x = images(BATCH, 4)
    before = model(x).numpy()

    def stop():
        model(x)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BookKeeping(model).gradients(stop)
    by_book_keeping(model, x, np.zeros(BATCH, int), np.ones(BATCH), 1.0)
    assert all("call" not in vars(layer) for layer in model.layers)
    assert model.layers[0].activation is keras.activations.relu
    assert np.array_equal(model(x).numpy(), before)


def test_nothing_but_its_activation_reads_a_layers_output():
    """TensorFlow can fuse the activation into the product or convolution only if nothing else reads the output."""
    convolution, dense = layers.Conv2D(4, 3, activation="relu"), layers.Dense(5, activation="relu")
    model = keras.Sequential([layers.Input((8, 8, 1)), convolution, layers.Flatten(), dense, layers.Dense(CLASSES)])

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 8, 8, 1)),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((None,)),
        ]
    )
    def step(x, y, weights):
        gradients = BookKeeping(model).gradients(lambda: (cross_entropy(y, model(x)), None), weights)
        return gradients.clipped_sum(1.0)

    graph = step.get_concrete_function().graph
    before = [one for one in graph.get_operations() if one.type == "BiasAdd"]
    readers = [[reader.type for output in one.outputs for reader in output.consumers()] for one in before]
    assert readers.count(["Relu"]) == 2, readers
