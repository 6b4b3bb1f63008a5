"""The contract of a rule: what it says of a layer is what a loop over the examples finds."""

from __future__ import annotations

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
        layer: The layer; it is built if it is not. Its weights are drawn anew.
        inputs: What it is called with, (examples, ...), at least two examples that differ.
        seed: Of what is drawn.

    Raises:
        InputError: if there is no rule for the layer, it has nothing to train, or its rule and the loop disagree; the
            message says in what.
    """
    inputs = tf.convert_to_tensor(inputs)
    if inputs.shape.rank is None or inputs.shape.rank < 2 or len(inputs) < 2:
        raise InputError(f"Expected inputs of shape (examples, ...) with at least 2 examples, got {inputs.shape}.")
    if not layer.built:
        layer.build(inputs.shape)
    if not own_weights(layer):
        raise InputError(f"Expected a layer with weights of its own to train, got {layer.name!r}.")
    generator = np.random.default_rng(seed)
    for weight in own_weights(layer):
        weight.assign(generator.normal(size=weight.shape) / np.sqrt(max(weight.shape[0], 1)) if weight.shape else 1.5)
    for uses in (1, 2):
        places = [keras.Input(inputs.shape[1:], dtype=inputs.dtype.name) for _ in range(uses)]
        model = keras.Model(places, [layer(place) for place in places])
        others = inputs / 2 if inputs.dtype.is_floating else tf.reverse(inputs, [1])
        batch = (inputs, others)[:uses]
        ones = tf.ones(len(inputs))
        _compare(model, batch, ones, f"{uses} use{'s' * (uses > 1)}", generator)
        _compare(model, batch, tf.concat([[0.0], ones[1:]], 0), "an example of weight 0", generator)
        if inputs.dtype.is_floating:
            spoilt = tuple(tf.concat([part[:1] * np.nan, part[1:]], 0) for part in batch)
            _compare(model, spoilt, ones, "an example that is not finite", generator)


def _compare(model, batch, weights, case, generator):
    """Norms and clipped sum by the rule and by the loop, in one case."""
    drawn: list = []

    def losses_of(some):
        outputs = [tf.reshape(o, (tf.shape(o)[0], -1)) for o in tf.nest.flatten(model(list(some), training=True))]
        if not drawn:
            drawn.extend(tf.constant(generator.normal(size=o.shape[1:]), tf.float32) for o in outputs)
        return tf.add_n([tf.reduce_sum(o * r + o * o / 4, 1) for o, r in zip(outputs, drawn, strict=True)])

    layer = next(layer for layer in model.layers if own_weights(layer))
    found = BookKeeping(model).gradients(lambda: (losses_of(batch), None), weights)
    norms = found.norms().numpy()
    clip = float(np.median(norms[np.isfinite(norms)]))
    total, _ = found.clipped_sum(clip)
    expected, expected_norms, _ = clipped_sum_example_by_example(model, losses_of, batch, weights, clip)
    _agree(norms, expected_norms.numpy(), layer, case, "per-example norms")
    for weight, mine, other in zip(own_weights(layer), total, expected, strict=True):
        _agree(np.asarray(mine), np.asarray(other), layer, case, f"the clipped sum for {weight.name!r}")


def _agree(found, expected, layer, case, what):
    """Refuse a rule whose figures are others, or of another shape."""
    if found.shape != expected.shape:
        raise InputError(
            f"The rule of layer {layer.name!r} ({type(layer).__name__}) gives {what} of shape {found.shape}, a loop "
            f"over the examples {expected.shape} ({case})."
        )
    finite = np.isfinite(expected)
    scale = np.max(np.abs(expected[finite]), initial=1e-6)
    difference = np.max(np.abs(found[finite] - expected[finite]), initial=0.0) / scale
    if not difference < _TOLERANCE or np.isfinite(found[~finite]).any():
        raise InputError(
            f"The rule of layer {layer.name!r} ({type(layer).__name__}) gives {what} that differ from those of a loop "
            f"over the examples by {difference:.2g} of their size ({case})."
        )
