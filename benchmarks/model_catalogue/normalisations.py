"""Layers that normalise."""

from __future__ import annotations

import keras

from .case import CLASSES, Case, labels, mlp, numbers, sequential

_L = keras.layers


def _case(model, build, x=None, **more):
    return Case("normalisation", model, "float32", build, numbers(5) if x is None else x, labels(), **more)


def _frozen(layer):
    layer.trainable = False
    return layer


def _by_switch(model):
    """Frozen after it was built, as a user of a finished model does."""
    for layer in model.layers:
        layer.trainable = not isinstance(layer, _L.BatchNormalization)
    return model


_IMAGES = (4, 4, 4)


def _images(*layers):
    return sequential(_IMAGES, _L.Conv2D(4, 3), *layers, _L.Flatten(), _L.Dense(CLASSES))


CASES = (
    _case("LayerNormalization", lambda: mlp(_L.LayerNormalization(), _L.Dense(CLASSES))),
    _case(
        "LayerNormalization over two axes", lambda: _images(_L.LayerNormalization([1, 2])), numbers(*_IMAGES), slow=True
    ),
    _case("GroupNormalization", lambda: _images(_L.GroupNormalization(2)), numbers(*_IMAGES), slow=True),
    _case("UnitNormalization", lambda: mlp(_L.UnitNormalization(), _L.Dense(CLASSES)), slow=True),
    _case("BatchNormalization", lambda: mlp(_L.BatchNormalization(), _L.Dense(CLASSES))),
    _case("BatchNormalization, frozen", lambda: mlp(_frozen(_L.BatchNormalization()), _L.Dense(CLASSES))),
    _case(
        "BatchNormalization, frozen later",
        lambda: _by_switch(mlp(_L.BatchNormalization(), _L.Dense(CLASSES))),
        slow=True,
    ),
    _case("SpectralNormalization(Dense)", lambda: mlp(_L.SpectralNormalization(_L.Dense(CLASSES)))),
)
