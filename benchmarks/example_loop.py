"""A step of clipped descent by a loop over examples: what Keras makes of batches of one row, summed in doubles.

It imports nothing of the engine, so the engine can be held against it.
"""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.models.keras_internals import drawing, layers_of, raw


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
            value = model.compute_loss(one, its, model(one, training=True), sample_weight=weight)
            value -= sum(model.losses)
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
    parts = np.split(flat, np.cumsum([math.prod(variable.shape) for variable in variables])[:-1])
    pairs = [(v, p.reshape(v.shape)) for v, p in zip(variables, parts, strict=True)]
    kept = [p if v.constraint is None else np.asarray(v.constraint(tf.constant(p))) for v, p in pairs]
    return np.concatenate([part.ravel() for part in kept])


def _flat(tape, value, variables):
    found = tape.gradient(value, raw(variables), unconnected_gradients="zero")
    return np.concatenate([tf.convert_to_tensor(g).numpy().astype(np.float64).ravel() for g in found])


# What Keras' layers, and those of them that change images, call their seed generators.
_GENERATORS = ("seed_generator", "generator")


class SameDraws:
    """In place of a Keras layer's seed generator: every row of every batch is drawn alike.

    What a loop draws for a batch of one row is then what a step draws for that row among others.
    """

    def __init__(self, number: int):
        self.number, self.used = number, False


def draw_alike(model: keras.Model) -> list[SameDraws]:
    """Give every layer that may draw a seed by which all rows are drawn alike; returns these."""
    _know_same_draws()
    held = [(layer, name) for layer in layers_of(model) for name in _GENERATORS if hasattr(layer, name)]
    draws = [SameDraws(number) for number in range(len(held))]
    for (layer, name), same in zip(held, draws, strict=True):
        setattr(layer, name, same)
    return draws


@functools.cache
def _know_same_draws() -> None:
    """Have Keras' draws, those that its layers take, know :class:`SameDraws`."""
    random = drawing()
    for name in ("normal", "uniform", "truncated_normal"):
        setattr(random, name, _alike(getattr(random, name)))
    random.dropout = _dropped_alike(random.dropout)


def _alike(draw):
    def drawn(shape, *arguments, seed=None, **options):
        if not isinstance(seed, SameDraws):
            return draw(shape, *arguments, seed=seed, **options)
        seed.used = True
        return tf.broadcast_to(draw((1, *shape[1:]), *arguments, seed=seed.number, **options), shape)

    return drawn


def _dropped_alike(dropout):
    def dropped(inputs, rate, noise_shape=None, seed=None):
        if not isinstance(seed, SameDraws):
            return dropout(inputs, rate, noise_shape=noise_shape, seed=seed)
        seed.used = True
        of_a_row = [None] * (len(inputs.shape) - 1) if noise_shape is None else noise_shape[1:]
        return dropout(inputs, rate, noise_shape=(1, *of_a_row), seed=seed.number)

    return dropped
