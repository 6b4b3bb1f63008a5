"""Whether every example is within what its layers take, before a step that drew a wrong one would tell of its row.

The inputs of layers whose range is known are looked at for all examples, wherever in the model they are computed, in
the mode of inference. TensorFlow leaves out of the computation whatever those inputs do not depend on.
"""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.models.keras_internals import layers_of

_layers = keras.layers
# Examples looked at in one piece.
_ROWS = 4096


def check_values_are_within_ranges(model: keras.Model, x) -> None:
    """Refuse examples that a layer of the model does not take.

    Known are the ranges of Embedding, CategoryEncoding, and IntegerLookup without a place for unknown values.

    Args:
        model: Built; its layers are as before afterwards.
        x: Structure of tensors, (n, ...).

    Raises:
        InputError: naming the layer and the first value.

    Not covered: layers of other makes, ranges of what is drawn or computed in training alone. A model that cannot be
    computed on x at all is left to the trial, which says why.
    """
    owners = [(layer, within) for layer in layers_of(model) if (within := _range_of(layer)) is not None]
    if not owners:
        return
    find = _finder(model, owners)
    ways = [tf.function(find, reduce_retracing=True), find]
    n = len(tf.nest.flatten(x)[0])
    for start in range(0, n, _ROWS):
        part = tf.nest.map_structure(lambda a, start=start: a[start : start + _ROWS], x)
        looked_at = _found(ways, part)
        if looked_at is None:
            return
        for (layer, _), (wrong, value) in zip(owners, looked_at, strict=True):
            if wrong:
                raise InputError(
                    f"Expected x to hold what layer {layer.name!r} ({type(layer).__name__}) takes, {_said(layer)}, got "
                    f"{value.numpy()} in one of the rows {start} to {min(start + _ROWS, n) - 1}; remove or recode it."
                )


def _range_of(layer):
    """(From the layer's inputs to which of them it takes, one that it takes); None if its range is not known."""
    size = {_layers.Embedding: "input_dim", _layers.CategoryEncoding: "num_tokens"}.get(type(layer))
    if size is not None:
        return lambda values: (values >= 0) & (values < getattr(layer, size)), 0
    if type(layer) is _layers.IntegerLookup and layer.num_oov_indices == 0:
        masked = [] if layer.mask_token is None else [layer.mask_token]
        known = np.asarray([*masked, *layer.get_vocabulary(include_special_tokens=False)], np.int64)
        return lambda values: tf.reduce_any(values[..., tf.newaxis] == known, -1), known[0]
    return None


def _said(layer):
    if isinstance(layer, _layers.IntegerLookup):
        return "the values of its vocabulary"
    size = layer.input_dim if isinstance(layer, _layers.Embedding) else layer.num_tokens
    return f"whole numbers from 0 to {size - 1}"


def _found(ways, part):
    """What is found in a graph, or without one where no graph takes the model; None if neither does."""
    while ways:
        try:
            return ways[0](part)
        except Exception:  # Whatever the model's own code raises, the trial meets it too and says it by name.
            del ways[0]
    return None


def _finder(model, owners):
    """From a part of x to (whether a value is out of range, the first such value), for each of the layers."""

    def find(x):
        with _looking_at(owners) as found:
            model(x, training=False)
        nothing = (tf.constant(False), tf.constant(0, tf.int64))
        return [found.get(id(layer), nothing) for layer, _ in owners]

    return find


@contextlib.contextmanager
def _looking_at(owners):
    """Each layer's ``call`` notes what it does not take, and goes on with a value that it does."""
    found: dict = {}
    try:
        for layer, (within, some) in owners:
            layer.call = _noting(layer, layer.call, within, some, found)
        yield found
    finally:
        for layer, _ in owners:
            layer.__dict__.pop("call", None)


def _noting(layer, call, within, some, found):
    @tf.autograph.experimental.do_not_convert
    def noting(inputs, *args, **kwargs):
        if not isinstance(inputs, tf.Tensor):  # ragged or sparse, made inside the model
            return call(inputs, *args, **kwargs)
        values = tf.cast(inputs, tf.int64)
        holds = within(values)
        wrong = tf.boolean_mask(tf.reshape(values, [-1]), tf.reshape(~holds, [-1]))
        here = tf.size(wrong) > 0, tf.concat([wrong, tf.zeros([1], tf.int64)], 0)[0]
        before = found.get(id(layer))
        found[id(layer)] = here if before is None else tuple(map(lambda a, b: tf.where(before[0], a, b), before, here))
        return call(tf.where(holds, inputs, tf.cast(some, inputs.dtype)), *args, **kwargs)

    return noting
