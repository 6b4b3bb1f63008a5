"""The contract of a rule: what it says of a layer is what a loop over the examples finds."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.ghost import BookKeeping, clipped_sum_example_by_example
from tfprivacy_lab.models.keras_internals import own_weights

_TOLERANCE = 1e-4


def check_rule(layer: keras.layers.Layer, inputs, *, seed: int = 0) -> None:
    """Hold a layer's rule against back-propagation of every example alone.

    The layer is used once and twice, with weights and losses that are drawn at random; norms and clipped sums must
    agree, with an example of weight zero and, for numbers that are not whole, with one that is not finite too.

    Args:
        layer: The layer, one for this purpose: its weights are drawn anew, and models are made of it.
        inputs: What it is called with, (examples, ...), at least two examples that differ.
        seed: Of what is drawn.

    Raises:
        InputError: if there is no rule for the layer, it has nothing to train, or its rule and the loop disagree; the
            message says in what.
    """
    inputs = tf.convert_to_tensor(inputs)
    if inputs.shape.rank is None or inputs.shape.rank < 2 or len(inputs) < 2:
        raise InputError(f"Expected inputs of shape (examples, ...) with at least 2 examples, got {inputs.shape}.")
    if len(np.unique(inputs.numpy(), axis=0)) < 2:
        raise InputError("Expected inputs of which at least 2 examples differ, got equal ones.")
    if layer.dtype_policy.name != "float32":
        raise InputError(f"Expected a layer that computes in float32, got {layer.name!r} of {layer.dtype_policy.name}.")
    if not layer.built:
        layer.build((None, *inputs.shape[1:]))
    weights = own_weights(layer)
    if not weights or {*map(id, weights)} != {*map(id, layer.trainable_weights)}:
        raise InputError(f"Expected a layer that trains weights of its own, and no others, got {layer.name!r}.")
    generator = np.random.default_rng(seed)
    for weight in weights:
        drawn = generator.normal(size=weight.shape) / math.sqrt(max(math.prod(weight.shape[:-1]), 1))
        weight.assign(drawn if weight.constraint is None else weight.constraint(tf.constant(drawn, weight.dtype)))
    for uses in (1, 2):
        places = [keras.Input(inputs.shape[1:], dtype=inputs.dtype.name) for _ in range(uses)]
        model = keras.Model(places, [layer(place) for place in places])
        others = inputs / 2 if inputs.dtype.is_floating else tf.reverse(inputs, [1])
        batch = (inputs, others)[:uses]
        losses_of = _losses_of(model, batch, generator)
        if not np.array_equal(losses_of(batch).numpy(), losses_of(batch).numpy(), equal_nan=True):
            raise InputError(f"Expected a layer that draws no random numbers, got {layer.name!r}.")
        ones = tf.ones(len(inputs))
        _compare(model, losses_of, batch, ones, f"{uses} use{'s' * (uses > 1)}")
        _compare(model, losses_of, batch, tf.concat([[0.0], ones[1:]], 0), "an example of weight 0")
        if inputs.dtype.is_floating:
            spoilt = tuple(tf.concat([part[:1] * np.nan, part[1:]], 0) for part in batch)
            _compare(model, losses_of, spoilt, ones, "an example that is not finite")


def _losses_of(model, batch, generator):
    """A loss of each example that depends on all of the model's outputs, not linearly."""
    flat = [len(tf.reshape(o, (len(o), -1))[0]) for o in tf.nest.flatten(model(list(batch), training=True))]
    drawn = [tf.constant(generator.normal(size=width), tf.float32) for width in flat]

    def losses_of(some):
        outputs = [tf.reshape(o, (tf.shape(o)[0], -1)) for o in tf.nest.flatten(model(list(some), training=True))]
        return tf.add_n([tf.reduce_sum(o * r + o * o / 4, 1) for o, r in zip(outputs, drawn, strict=True)])

    return losses_of


def _compare(model, losses_of, batch, weights, case):
    """Norms and clipped sum by the rule and by the loop, in one case."""
    layer = next(layer for layer in model.layers if own_weights(layer))
    # Automatic clipping: every factor depends on its norm.
    expected, norms, _ = clipped_sum_example_by_example(model, losses_of, batch, weights, 1.0, "automatic")
    norms = norms.numpy()
    taken = np.isfinite(norms) & (weights.numpy() > 0)
    if not (taken.sum() and np.all(norms[taken] > 0)):
        raise InputError(
            f"Expected inputs for which every example has a finite gradient that is not zero, got norms {norms}."
        )
    found = BookKeeping(model).gradients(lambda: (losses_of(batch), None), weights)
    _agree(found.norms().numpy(), norms, layer, case, "per-example norms", norms)
    total, _ = found.clipped_sum(1.0, "automatic")
    for weight, mine, other in zip(model.trainable_variables, total, expected, strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        _agree(mine, other, layer, case, f"the clipped sum for {weight.name!r}", np.max(np.abs(other), initial=0.0))


def _agree(found, expected, layer, case, what, scale):
    """Refuse a rule whose figures are others by more than rounding of ``scale``, or of another shape."""
    if found.shape != expected.shape:
        raise InputError(
            f"The rule of layer {layer.name!r} ({type(layer).__name__}) gives {what} of shape {found.shape}, a loop "
            f"over the examples {expected.shape} ({case})."
        )
    finite = np.isfinite(expected)
    scale = np.broadcast_to(np.maximum(scale, 1e-6), expected.shape)
    difference = np.max(np.abs(found[finite] - expected[finite]) / scale[finite], initial=0.0)
    if not difference < _TOLERANCE or np.isfinite(found[~finite]).any():
        raise InputError(
            f"The rule of layer {layer.name!r} ({type(layer).__name__}) gives {what} that differ from those of a loop "
            f"over the examples by {difference:.2g} of their size ({case})."
        )
