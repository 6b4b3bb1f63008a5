"""Whether every layer is given one row per example, which its rule needs: no folded batch, nothing without examples."""

from __future__ import annotations

import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.rule import Rule


def check_first_axes(uses: list[Rule], losses: tf.Tensor) -> None:
    """Refuse what shapes show already. Where the graph leaves the batch's size open, a fixed first axis is not its.

    Raises:
        InputError: naming the layer.
    """
    count = losses.shape[0]
    for use in uses:
        for inputs in use.inputs:
            if inputs.shape[0] is not None and inputs.shape[0] != count:
                raise _wrong(use.layer, inputs.shape[0], "any number" if count is None else count)


def heights(uses: list[Rule]) -> tf.Tensor:
    """How many rows each layer is given at each use."""
    return tf.stack([tf.shape(inputs)[0] for use in uses for inputs in use.inputs])


def check_heights(layers: list, found, count: int) -> None:
    """Refuse rows that are not examples, where a graph of open sizes hid them.

    Args:
        layers: A layer for each of ``found``.
        found: What :func:`heights` became.
        count: Examples of that batch.

    Raises:
        InputError: naming the layer.
    """
    for layer, rows in zip(layers, found, strict=True):
        if rows != count:
            raise _wrong(layer, rows, count)


def _wrong(layer, rows, count) -> InputError:
    called = f"Layer {layer.name!r} is called with {rows} rows for a batch of {count}"
    return InputError(
        f"{called}, and the fast engine's rule needs one row per example: its input has no axis for examples "
        "(positions by tf.range), or the batch was folded; give it a row per example "
        "(tf.broadcast_to(positions, tf.shape(tokens))), or pass unknown_layers='slow'."
    )
