"""A step of clipped descent by a loop over examples: what Keras makes of batches of one row, summed in doubles.

It imports nothing of the library, so it can be held against it.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf


def gradients(model: keras.Model, x, y, weights, loss) -> np.ndarray:
    """Each example's gradient over all trainable weights, (n, parameters), by Keras' own loss of a batch of one row.

    Args:
        model: The model; it is compiled for the loss.
        x: Arrays (n, ...), or a structure of such.
        y: Labels, (n, ...).
        weights: What the losses are multiplied by, (n,), or None for 1.
        loss: As ``compile`` takes it.
    """
    model.compile(loss=loss)
    found, count = [], len(tf.nest.flatten(x)[0])
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    for i in range(count):
        one, its, weight = tf.nest.map_structure(lambda a, i=i: tf.constant(a[i : i + 1]), (x, y, weights))
        with tf.GradientTape() as tape:
            value = model.compiled_loss(its, model(one, training=True), sample_weight=weight)
        found.append(_flat(tape, value, model.trainable_variables))
    return np.stack(found)


def clip_between(found: np.ndarray) -> float:
    """A clipping norm that half of the examples pass, between two neighbouring norms."""
    norms = np.sort(np.linalg.norm(found, axis=1))
    norms = norms[np.isfinite(norms)]
    return float(norms[len(norms) // 2 - 1 : len(norms) // 2 + 1].mean())


def clipped_sum(found: np.ndarray, l2_norm_clip: float) -> np.ndarray:
    """The sum of the gradients, each scaled down to the clipping norm if it is longer."""
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.sum(found * np.minimum(1.0, l2_norm_clip / np.maximum(norms, 1e-300)), axis=0)


def regularisation_gradient(model: keras.Model) -> np.ndarray:
    """The gradient of the weights' regularisers."""
    with tf.GradientTape() as tape:
        value = tf.add_n(model.losses) if model.losses else tf.constant(0.0)
    return _flat(tape, value, model.trainable_variables)


def weights_of(model: keras.Model) -> np.ndarray:
    """All trainable weights, flat, in doubles."""
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in model.trainable_variables])


def constrained(model: keras.Model, flat: np.ndarray) -> np.ndarray:
    """Trainable weights after their constraints, as Keras' optimizers apply them."""
    variables = model.trainable_variables
    parts = np.split(flat, np.cumsum([variable.shape.num_elements() for variable in variables])[:-1])
    pairs = [(v, p.reshape(v.shape)) for v, p in zip(variables, parts, strict=True)]
    kept = [p if v.constraint is None else v.constraint(tf.constant(p)).numpy() for v, p in pairs]
    return np.concatenate([part.ravel() for part in kept])


def _flat(tape, value, variables):
    found = tape.gradient(value, variables, unconnected_gradients="zero")
    return np.concatenate([tf.convert_to_tensor(g).numpy().astype(np.float64).ravel() for g in found])


class SameDraws:
    """In place of a Keras layer's random generator: every row of every batch is drawn alike.

    What a loop draws for a batch of one row is then what a step draws for that row among others.
    """

    def __init__(self, number: int):
        self._seed, self.used = [number, 7], False

    def random_uniform(self, shape, minval=0.0, maxval=1.0, dtype=None, nonce=None):
        return self._rows(tf.random.stateless_uniform, shape, minval=minval, maxval=maxval, dtype=dtype or tf.float32)

    def random_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, nonce=None):
        return self._rows(tf.random.stateless_normal, shape, mean=mean, stddev=stddev, dtype=dtype or tf.float32)

    def dropout(self, inputs, rate, noise_shape=None):
        shape = tf.shape(inputs) if noise_shape is None else noise_shape
        return tf.where(self.random_uniform(shape) >= rate, inputs / (1 - rate), 0.0)

    def _rows(self, draw, shape, **options):
        self.used = True
        row = draw(shape=shape[1:], seed=self._seed, **options)
        return tf.broadcast_to(row, shape)


def draw_alike(model: keras.Model) -> list[SameDraws]:
    """Give every layer that may draw a generator that draws all rows alike; returns these."""
    able = [layer for layer in model._flatten_layers() if hasattr(layer, "_random_generator")]
    for number, layer in enumerate(able):
        layer._random_generator = SameDraws(number)
    return [layer._random_generator for layer in able]
