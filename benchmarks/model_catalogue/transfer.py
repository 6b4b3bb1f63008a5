"""Bases of ``keras.applications``, frozen whole or in part, with a head; weights random, as none are downloaded."""

from __future__ import annotations

import keras
import numpy as np

from .case import CLASSES, Case, labels, numbers

_L, _SIDE = keras.layers, 32


def _lively(base):
    """Weights under which activations keep their size; under Keras' own they fade over so many layers."""
    draw = np.random.default_rng(0)
    for layer in base.layers:
        for variable in layer.weights:
            if variable.name == "kernel":
                spread = 1 if isinstance(layer, _L.DepthwiseConv2D) else np.sqrt(2 / np.prod(variable.shape[:-1]))
                variable.assign(draw.normal(scale=spread, size=variable.shape))
    return base


def _mobile_net():
    return keras.applications.MobileNet((_SIDE, _SIDE, 3), alpha=0.25, include_top=False, weights=None)


def _mobile_net_v2():
    return keras.applications.MobileNetV2((_SIDE, _SIDE, 3), alpha=0.35, include_top=False, weights=None)


def _guide(base):
    """Keras' transfer learning guide: the base frozen, in inference, and a head."""
    _lively(base).trainable = False
    inputs = keras.Input((_SIDE, _SIDE, 3))
    above = base(_L.Rescaling(scale=1 / 127.5, offset=-1)(inputs), training=False)
    return keras.Model(inputs, _L.Dense(CLASSES)(_L.GlobalAveragePooling2D()(above)))


def _fine_tuned(base, layers=6):
    """The last layers are trained too, but for batch normalisation."""
    model = _guide(base)
    base.trainable = True
    for number, layer in enumerate(base.layers):
        layer.trainable = number >= len(base.layers) - layers and not isinstance(layer, _L.BatchNormalization)
    return model


def _unfrozen(base):
    model = _guide(base)
    base.trainable = True
    return model


def _case(model, build, **more):
    return Case("transfer", model, "float32 images", build, 100 * numbers(_SIDE, _SIDE, 3), labels(), **more)


CASES = (
    _case("MobileNetV2 frozen, Keras' transfer learning guide", lambda: _guide(_mobile_net_v2()), slow=True),
    _case("MobileNet, last layers trained, BatchNormalization frozen", lambda: _fine_tuned(_mobile_net()), slow=True),
    _case(
        "MobileNet unfrozen whole",
        lambda: _unfrozen(_mobile_net()),
        not_compared="a batch of one image is normalised to zeros",
        slow=True,
    ),
)
