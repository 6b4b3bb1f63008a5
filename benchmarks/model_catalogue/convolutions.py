"""Models of convolutions and pooling."""

from __future__ import annotations

import keras

from .case import CLASSES, Case, labels, numbers, sequential

_L = keras.layers
_IMAGES, _SIGNALS, _VOLUMES = (6, 6, 4), (8, 4), (4, 4, 4, 2)
_KINDS = {_IMAGES: "float32 images", _SIGNALS: "float32 signals", _VOLUMES: "float32 volumes"}


def _case(model, build, shape=_IMAGES, y=None, **more):
    y = labels() if y is None else y
    return Case("convolution", model, _KINDS.get(shape, "float32 images"), build, numbers(*shape), y, **more)


def _pooled(shape, *layers):
    """A model of these layers, summed up over all positions but a few."""
    return lambda: sequential(shape, *(layer() for layer in layers), _L.Flatten(), _L.Dense(CLASSES))


def _mnist_convnet():
    return sequential(
        (10, 10, 1),
        _L.Conv2D(4, 3, activation="relu"),
        _L.MaxPooling2D(),
        _L.Conv2D(6, 3, activation="relu"),
        _L.MaxPooling2D(),
        _L.Flatten(),
        _L.Dropout(0.5),
        _L.Dense(CLASSES, activation="softmax"),
    )


def _autoencoder():
    return sequential(
        (8, 8, 1),
        _L.Conv2D(4, 3, activation="relu", padding="same"),
        _L.MaxPooling2D(padding="same"),
        _L.Conv2DTranspose(4, 3, strides=2, activation="relu", padding="same"),
        _L.Conv2D(1, 3, activation="sigmoid", padding="same"),
    )


def _upsampling_autoencoder():
    return sequential(
        (8, 8, 1),
        _L.Conv2D(4, 3, strides=2, activation="relu", padding="same"),
        _L.UpSampling2D(),
        _L.ZeroPadding2D(1),
        _L.Cropping2D(1),
        _L.Conv2D(1, 3, padding="same"),
    )


def _residual_block():
    inputs = keras.Input(_IMAGES)
    above = _L.Conv2D(4, 3, padding="same", use_bias=False)(_L.Activation("relu")(_L.GroupNormalization(2)(inputs)))
    above = _L.Add()([inputs, above])
    above = _L.GlobalAveragePooling2D()(_L.Conv2D(6, 1)(above))
    return keras.Model(inputs, _L.Dense(CLASSES)(above))


def _u_net():
    inputs = keras.Input((8, 8, 2))
    first = _L.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    below = _L.Conv2D(4, 3, padding="same", activation="relu")(_L.MaxPooling2D()(first))
    above = _L.Concatenate()([first, _L.UpSampling2D()(below)])
    return keras.Model(inputs, _L.Conv2D(CLASSES, 1)(above))


def _conv(cls, *arguments, **options):
    return lambda: cls(*arguments, **options)


CASES = (
    _case("Keras' MNIST convnet", _mnist_convnet, (10, 10, 1), loss="sparse_categorical_crossentropy", slow=True),
    _case("Conv1D, strides 2", _pooled(_SIGNALS, _conv(_L.Conv1D, 5, 3, 2, activation="relu")), _SIGNALS),
    _case(
        "Conv1D, causal and dilated",
        _pooled(_SIGNALS, _conv(_L.Conv1D, 5, 2, padding="causal", dilation_rate=2)),
        _SIGNALS,
        slow=True,
    ),
    _case(
        "Conv2D, same padding, strides 2, average pooling",
        _pooled(_IMAGES, _conv(_L.Conv2D, 5, 3, 2, "same", activation="relu"), lambda: _L.AveragePooling2D(2)),
    ),
    _case("Conv2D, dilated", _pooled(_IMAGES, _conv(_L.Conv2D, 5, 2, dilation_rate=2)), slow=True),
    _case("Conv2D, 2 groups", _pooled(_IMAGES, _conv(_L.Conv2D, 6, 3, groups=2))),
    _case(
        "Conv2D, channels_first",
        _pooled(_IMAGES, _conv(_L.Conv2D, 5, 3, data_format="channels_first")),
        not_compared="TensorFlow computes it on GPUs alone",
    ),
    _case("Conv3D", _pooled(_VOLUMES, _conv(_L.Conv3D, 3, 2, activation="relu"), lambda: _L.MaxPooling3D(2)), _VOLUMES),
    _case("Conv1DTranspose", _pooled(_SIGNALS, _conv(_L.Conv1DTranspose, 3, 3, 2)), _SIGNALS, slow=True),
    _case("Conv3DTranspose", _pooled(_VOLUMES, _conv(_L.Conv3DTranspose, 2, 2)), _VOLUMES, slow=True),
    _case("DepthwiseConv2D, multiplier 2", _pooled(_IMAGES, _conv(_L.DepthwiseConv2D, 3, depth_multiplier=2))),
    _case("DepthwiseConv1D", _pooled(_SIGNALS, _conv(_L.DepthwiseConv1D, 3)), _SIGNALS, slow=True),
    _case("SeparableConv2D", _pooled(_IMAGES, _conv(_L.SeparableConv2D, 5, 3, activation="relu")), slow=True),
    _case("SeparableConv1D", _pooled(_SIGNALS, _conv(_L.SeparableConv1D, 5, 3)), _SIGNALS, slow=True),
    _case("autoencoder with Conv2DTranspose", _autoencoder, (8, 8, 1), y=numbers(8, 8, 1), loss="mse", slow=True),
    _case(
        "autoencoder with UpSampling2D", _upsampling_autoencoder, (8, 8, 1), y=numbers(8, 8, 1), loss="mse", slow=True
    ),
    _case("residual block with GroupNormalization", _residual_block),
    _case(
        "U-Net, a class for each pixel", _u_net, (8, 8, 2), y=labels()[:, None, None] * (numbers(8, 8) > 0), slow=True
    ),
)
