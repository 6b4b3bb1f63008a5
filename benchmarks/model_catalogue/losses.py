"""Losses, and the labels that go with them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from .case import CLASSES, Case, ids, labels, mlp, numbers, one_hot, sequential, yes_or_no

_L, _LOSSES = keras.layers, keras.losses


def _per_example(labels, outputs):
    return tf.reduce_mean(tf.abs(labels - outputs) ** 1.5, axis=-1)


def _one_number(labels, outputs):
    return tf.reduce_mean(tf.square(labels - outputs))


def _other_labels(labels, outputs):
    """Looks at the neighbour's label."""
    return tf.reduce_mean(tf.square(tf.roll(labels, 1, 0) - outputs), axis=-1)


class Focal(_LOSSES.Loss):
    """A Loss of one's own."""

    def call(self, labels, outputs):
        right = tf.where(labels > 0.5, outputs, 1 - outputs)
        return -tf.reduce_mean((1 - right) ** 2 * tf.math.log(right + 1e-7), axis=-1)


def _case(model, kind, y, loss, build=mlp, x=None, **more):
    return Case("loss", model, kind, build, numbers(5) if x is None else x, y, loss, **more)


def _outputs(count, activation=None):
    return lambda: mlp(_L.Dense(count, activation))


def _pixels():
    return sequential((3, 3, 2), _L.Conv2D(4, 3, padding="same"), _L.Conv2D(CLASSES, 1))


_TWO = numbers(2)
_IGNORED = np.where(labels() == 1, -1, labels())

CASES = (
    _case("mean absolute error, two outputs", "y (n, 2)", _TWO, "mae", _outputs(2), slow=True),
    _case("Huber, y (n,) beside outputs (n, 1)", "y (n,)", numbers(), _LOSSES.Huber(), _outputs(1), slow=True),
    _case(
        "mean squared error, reduction SUM", "y (n, 2)", _TWO, _LOSSES.MeanSquaredError(reduction="sum"), _outputs(2)
    ),
    _case(
        "categorical cross-entropy, label smoothing",
        "y one-hot",
        one_hot(),
        _LOSSES.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        slow=True,
    ),
    _case(
        "categorical focal cross-entropy",
        "y one-hot",
        one_hot(),
        _LOSSES.CategoricalFocalCrossentropy(),
        _outputs(CLASSES, "softmax"),
        slow=True,
    ),
    _case(
        "sparse cross-entropy, ignore_class",
        "y class numbers",
        _IGNORED,
        _LOSSES.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
    ),
    _case(
        "sparse cross-entropy for each pixel",
        "y (n, h, w)",
        ids(CLASSES, 3, 3),
        _LOSSES.SparseCategoricalCrossentropy(from_logits=True),
        _pixels,
        numbers(3, 3, 2),
    ),
    _case(
        "binary cross-entropy, many labels",
        "y (n, 4)",
        ids(2, 4).astype(np.float32),
        _LOSSES.BinaryCrossentropy(from_logits=True),
        _outputs(4),
        slow=True,
    ),
    _case("hinge", "y -1 or 1", 2 * yes_or_no()[:, None] - 1, "hinge", _outputs(1, "tanh"), slow=True),
    _case("Poisson", "y counts", ids(5, 1).astype(np.float32), "poisson", _outputs(1, "exponential"), slow=True),
    _case("cosine similarity", "y (n, 2)", _TWO, _LOSSES.CosineSimilarity(), _outputs(2), slow=True),
    _case("Kullback-Leibler", "y one-hot", one_hot(), "kl_divergence", _outputs(CLASSES, "softmax"), slow=True),
    _case("a function of one's own", "y (n, 2)", _TWO, _per_example, _outputs(2), slow=True),
    _case("a Loss of one's own", "y 0 or 1", yes_or_no()[:, None], Focal(), _outputs(1, "sigmoid")),
    _case("a function that gives one number", "y (n, 2)", _TWO, _one_number, _outputs(2)),
    _case("a function that looks at another's label", "y (n, 2)", _TWO, _other_labels, _outputs(2)),
)
