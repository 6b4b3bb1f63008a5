"""One row per example, asserted inside the compiled step: what clipping by example rests on."""

from __future__ import annotations

import re

import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import native

# Begins the message of an assertion that fails at run time.
_MARK = "one row per example"


def assert_one_row_per_example(rows: int | tf.Tensor, tensors: dict) -> tf.Operation:
    """An assertion that first axes are as long as there are rows: at tracing where shapes are known, else every batch.

    Args:
        rows: Number of rows, or a tensor that has them, (rows, ...).
        tensors: By what to call them, tensors or structures of tensors, (rows, ...).

    Returns:
        What the step must depend on, see :func:`after`.

    Raises:
        InputError: naming the first tensor whose shape shows it at tracing.
    """
    known, opened = (rows.shape[0] if rows.shape.rank else None) if tf.is_tensor(rows) else rows, []
    for name, group in tensors.items():
        for tensor in tf.nest.flatten(group):
            if tensor.shape.rank == 0:
                raise InputError(f"Expected {name} to have {_MARK}, got a single number: clipping it bounds nothing.")
            length = None if tensor.shape.rank is None else tensor.shape[0]
            if None not in (known, length):
                if length != known:
                    raise InputError(_refusal(name, length, known))
            elif tensor is not rows:
                opened.append((name, tensor))
    if not opened:
        return tf.no_op()
    names, opened = zip(*opened, strict=True)
    if compiled := native.operations():
        given = [*([rows] if known is None else []), *opened]
        return compiled.tfprivacy_lab_assert_rows(
            given, mark=_MARK, rows=-1 if known is None else known, names=list(names)
        )
    lengths = [tf.shape(tensor, tf.int64)[0] for tensor in opened]
    rows = tf.shape(rows, tf.int64)[0] if known is None else tf.constant(known, tf.int64)
    data = [_MARK, rows, *(part for pair in zip(names, lengths, strict=True) for part in pair)]
    # The bare operation: tf.debugging.Assert puts a conditional around it, at every step.
    return tf.raw_ops.Assert(condition=tf.reduce_all(tf.equal(tf.stack(lengths), rows)), data=data)


def after(check: tf.Operation | None, tensors):
    """The tensors, once the assertion held; None is one that held at once."""
    with tf.control_dependencies([] if check is None else [check]):
        return tf.nest.map_structure(tf.identity, tensors)


def refusal_of(error: tf.errors.OpError) -> str | None:
    """One line of what an assertion of this module found when it ran; None if the error is another."""
    line = next((line for line in str(error.message).splitlines() if f"[{_MARK}]" in line), None)
    if line is None:
        return None
    said = line[line.index(f"[{_MARK}]") :].replace("\\'", "'")  # as TensorFlow quotes names
    _, rows, *pairs = re.findall(r"\[(.*?)\]", said)
    return next(_refusal(n, int(got), int(rows)) for n, got in zip(*[iter(pairs)] * 2, strict=False) if got != rows)


def _refusal(name, got, rows):
    found = f"Expected {name} to have {_MARK}, got {got} rows for {rows}"
    if "layer" in name:
        return (
            f"{found}: what the layer adds to one example's gradient cannot be told from that; call it on one row per "
            "example, or pass unknown_layers='slow' to differentiate example by example."
        )
    return f"{found}: the model or the loss folds examples, or computes across them, so clipping would bound nothing."
