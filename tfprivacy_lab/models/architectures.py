"""The Keras models of the lab: two to train whole, and a public backbone under a private head.

Every model takes float32 images (n, 28, 28, 1) in [0, 1], 0 for paper, and returns logits, not
probabilities. Only the layers of `document_mlp`, `tutorial_cnn` and `dense_head` may be trained under DP:
the backbone has batch normalisation, which mixes the examples of a batch and would void the guarantee.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_positive_int

IMAGE_SHAPE = (28, 28, 1)
FEATURES = 128
CLASSES = 10

_layers = keras.layers


def document_mlp() -> keras.Sequential:
    """The document's listing 4.1: 784-128-10 with dropout 0.2; 101,770 weights."""
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            _layers.Flatten(),
            _layers.Dense(128, activation="relu"),
            _layers.Dropout(0.2),
            _layers.Dense(CLASSES),
        ],
        name="document_mlp",
    )


def tutorial_cnn(activation: str = "relu") -> keras.Sequential:
    """The convolutional network of TensorFlow Privacy's MNIST tutorial; 26,010 weights.

    Args:
        activation: Of the hidden layers; "tanh" bounds them and suits clipped, noisy gradients better
            (Papernot et al. 2021, "Tempered sigmoid activations for deep learning with differential privacy").
    """
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            _layers.Conv2D(16, 8, strides=2, padding="same", activation=activation),
            _layers.MaxPool2D(2, 1),
            _layers.Conv2D(32, 4, strides=2, padding="valid", activation=activation),
            _layers.MaxPool2D(2, 1),
            _layers.Flatten(),
            _layers.Dense(32, activation=activation),
            _layers.Dense(CLASSES),
        ],
        name="tutorial_cnn",
    )


def backbone() -> keras.Sequential:
    """Public feature extractor: two strided convolutions and 128 standardised, unit-norm features.

    The last batch normalisation has no weights of its own: it spreads the features evenly over their 128
    axes before they are put on the unit sphere, and a private head then needs fewer noisy steps.
    The unit norm bounds every example's gradient of a dense head by what its error alone allows.

    Input shape: (n, 28, 28, 1). Output shape: (n, 128), Euclidean norm 1.

    Not covered: training it on private data under DP (batch normalisation).
    """
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            _layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            _layers.Conv2D(64, 5, strides=2, padding="same", activation="relu"),
            _layers.Flatten(),
            # The normalisation subtracts the mean, so a bias would do nothing.
            _layers.Dense(FEATURES, use_bias=False),
            _layers.BatchNormalization(momentum=0.9, center=False, scale=False),
            _layers.UnitNormalization(),
        ],
        name="backbone",
    )


def deep_backbone() -> keras.Sequential:
    """Public feature extractor: four normalised convolutions and 256 standardised, unit-norm features.

    As `backbone`, three times the work an image.

    Input shape: (n, 28, 28, 1). Output shape: (n, 256), Euclidean norm 1.

    Not covered: training it on private data under DP (batch normalisation).
    """
    model = keras.Sequential([_layers.Input(IMAGE_SHAPE)], name="deep_backbone")
    for filters, kernel, strides in ((32, 5, 2), (64, 3, 1), (64, 3, 2), (128, 3, 1)):
        model.add(_layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False))
        model.add(_layers.BatchNormalization(momentum=0.9))
        model.add(_layers.ReLU())
    model.add(_layers.Flatten())
    model.add(_layers.Dense(2 * FEATURES, use_bias=False))
    model.add(_layers.BatchNormalization(momentum=0.9, center=False, scale=False))
    model.add(_layers.UnitNormalization())
    return model


@keras.utils.register_keras_serializable("tfprivacy_lab")
class Square(_layers.Layer):
    """x * x, elementwise: the activation that a ciphertext can compute (Gilad-Bachrach et al. 2016, CryptoNets).

    It has no weights, so both DP engines take it like any other activation.

    Input shape, output shape: any, the same.
    """

    def call(self, inputs):
        """The elementwise square."""
        return tf.square(inputs)

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape


def square_mlp(hidden: int = FEATURES) -> keras.Sequential:
    """784-128-x²-10, for evaluation on encrypted images; 101,770 weights.

    Args:
        hidden: Width of the squared layer, >= 1.
    """
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            _layers.Flatten(),
            _layers.Dense(check_positive_int("hidden", hidden), kernel_initializer=_small()),
            Square(),
            _layers.Dense(CLASSES),
        ],
        name="square_mlp",
    )


def cryptonet() -> keras.Sequential:
    """Convolution, square, dense, square, dense, after CryptoNets (Gilad-Bachrach et al. 2016); 73,240 weights.

    A 5x5 convolution of stride 2 to 5 maps of 12x12, then 100 and 10 units. The pooling that CryptoNets has
    between its linear layers is itself linear, and a part of the dense layer here.
    """
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            _layers.Conv2D(5, 5, strides=2),
            Square(),
            _layers.Flatten(),
            _layers.Dense(100, kernel_initializer=_small()),
            Square(),
            _layers.Dense(CLASSES),
        ],
        name="cryptonet",
    )


def _small():
    """Glorot's variance, halved: what is squared starts below 1 and gradients stay small."""
    return keras.initializers.VarianceScaling(0.5, mode="fan_avg")


WHOLE = {"document_mlp": document_mlp, "tutorial_cnn_tanh": functools.partial(tutorial_cnn, "tanh")}
BACKBONES = {"backbone": backbone, "deep_backbone": deep_backbone}


def autoencoder(encoder: keras.Model | None = None) -> keras.Sequential:
    """The document's teaching baseline: ``encoder`` (a new `backbone` by default) and a mirrored decoder.

    Input shape: (n, 28, 28, 1). Output shape: the same, in [0, 1].
    """
    return keras.Sequential(
        [
            _layers.Input(IMAGE_SHAPE),
            encoder if encoder is not None else backbone(),
            _layers.Dense(7 * 7 * 32, activation="relu"),
            _layers.Reshape((7, 7, 32)),
            _layers.Conv2DTranspose(16, 5, strides=2, padding="same", activation="relu"),
            _layers.Conv2DTranspose(1, 5, strides=2, padding="same", activation="sigmoid"),
        ],
        name="autoencoder",
    )


def dense_head(features: int = FEATURES, classes: int = CLASSES) -> keras.Sequential:
    """One dense layer, zero at the start: logits = features · kernel + bias.

    Args:
        features: Width of the input, >= 1.
        classes: Number of logits, >= 1.

    Returns:
        A built model, (n, features) to (n, classes).

    Raises:
        InputError: naming the argument.
    """
    features = check_positive_int("features", features)
    classes = check_positive_int("classes", classes)
    dense = _layers.Dense(classes, kernel_initializer="zeros", name="logits")
    return keras.Sequential([_layers.Input((features,)), dense], name="head")


def freeze(model: keras.Model) -> keras.Model:
    """Make every weight of ``model`` untrainable, in place; returns it."""
    model.trainable = False
    return model


def with_head(extractor: keras.Model, head: keras.Model) -> keras.Model:
    """One model from images to logits, sharing the weights of both parts; it saves and loads as ``.keras``.

    Raises:
        InputError: if the head does not take what the extractor gives.
    """
    given, wanted = extractor.output_shape[-1], head.input_shape[-1]
    if given != wanted:
        raise InputError(f"Expected a head for {given} features, got one for {wanted}.")
    return keras.Sequential([_layers.Input(extractor.input_shape[1:]), extractor, head], name="classifier")


def check_images(images) -> np.ndarray:
    """Return ``images`` as float32 (n, 28, 28, 1) in [0, 1].

    Args:
        images: (n, 28, 28) or (n, 28, 28, 1); uint8 in [0, 255], or float in [0, 1].

    Raises:
        InputError: naming the shape, the dtype or the range received.
    """
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[1:] != IMAGE_SHAPE or len(array) == 0:
        raise InputError(f"Expected images of shape (n, 28, 28) or (n, 28, 28, 1), n >= 1, got {np.shape(images)}.")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise InputError(f"Expected images of dtype uint8 or float, got {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(f"Expected float images in [0, 1], got values from {low:g} to {high:g}.")
    return array.astype(np.float32, copy=False)


def outputs(model: keras.Model, inputs, batch_size: int = 2048) -> np.ndarray:
    """What a model gives for inputs, in inference, batch by batch, (n, ...).

    Keras' own ``predict`` makes a graph for every model and size of batch, and warns of them where there are many.

    Args:
        model: The model.
        inputs: (n, ...), n at least 1.
    """
    return np.concatenate(
        [
            np.asarray(model(inputs[start : start + batch_size], training=False))
            for start in range(0, len(inputs), batch_size)
        ]
    )


def embed(extractor: keras.Model, images, batch_size: int = 1000) -> np.ndarray:
    """Features of ``images``, computed chunk by chunk in inference mode.

    Args:
        extractor: A model such as `backbone`.
        images: uint8, or float in [0, 1]; (n, 28, 28) or (n, 28, 28, 1).
        batch_size: Images a chunk, >= 1; it bounds memory and does not change the result beyond rounding.

    Returns:
        float32 (n, 128), each row of norm 1.

    Raises:
        InputError: naming the argument.
    """
    batch_size = check_positive_int("batch_size", batch_size)
    array = np.asarray(images)
    starts = range(0, max(1, len(array)), batch_size)
    parts = [extractor(check_images(array[start : start + batch_size]), training=False).numpy() for start in starts]
    return np.concatenate(parts).astype(np.float32, copy=False)
