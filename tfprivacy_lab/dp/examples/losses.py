"""Losses with one entry an example, from any Keras loss that can be taken apart so."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.rows import after, assert_one_row_per_example
from tfprivacy_lab.models.keras_internals import mask_of

_Loss = keras.losses.Loss
# Numbers of output that labels are tried against at a time: 16 MiB.
_TRIED_NUMBERS = 2**22


class ExampleLosses:
    """A Keras loss as a function from (labels, outputs) to losses (batch,).

    Args:
        loss: What ``compile`` takes: a name, a function or a Loss; its reduction is replaced. Over further
            axes (time steps, pixels) it is the mean, or the sum where the reduction is SUM; positions that
            Keras masks are left out, of the sum and of the count.

    Raises:
        InputError: if it is not one loss.
    """

    def __init__(self, loss):
        if isinstance(loss, str):
            try:
                loss = keras.losses.get(loss)
            except ValueError as error:
                raise InputError(f"Expected loss to be a Keras loss, got loss={loss!r}.") from error
        if isinstance(loss, dict | list | tuple) or not callable(loss):
            raise InputError(f"Expected loss to be one Keras loss for one output, got {type(loss).__name__}.")
        self._sums = isinstance(loss, _Loss) and loss.reduction == "sum"
        self._function = loss.call if isinstance(loss, _Loss) else loss
        self._sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or (
            loss is keras.losses.sparse_categorical_crossentropy
        )
        self._ignored = getattr(loss, "ignore_class", None)

    def __call__(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Losses, (batch,).

        Raises:
            InputError: if the loss is a number already, or the model has several outputs.
        """
        _check_one_output(outputs)
        labels = tf.convert_to_tensor(labels)
        if len(labels.shape) == 1 and len(outputs.shape) == 2:
            labels = labels[:, tf.newaxis]
        if outputs.dtype.is_floating and labels.dtype.is_floating:
            labels = tf.cast(labels, outputs.dtype)
        values = tf.convert_to_tensor(self._function(labels, outputs))
        if len(values.shape) == 0:
            raise InputError(
                "Expected loss to give one value an example, got a single number: clipping it would bound nothing; "
                "return the losses before their mean."
            )
        rows = assert_one_row_per_example(labels, {"the model's output": outputs, "the losses": values})
        values, over = after(rows, values), list(range(1, len(values.shape)))
        mask = mask_of(outputs)
        if mask is None or not over:
            return values if not over else (tf.reduce_sum if self._sums else tf.reduce_mean)(values, over)
        mask = tf.cast(tf.broadcast_to(tf.reshape(mask, _like(mask, values)), tf.shape(values)), values.dtype)
        total = tf.reduce_sum(values * mask, over)
        return total if self._sums else tf.math.divide_no_nan(total, tf.reduce_sum(mask, over))

    def check_labels(self, labels: tf.Tensor, outputs: tf.Tensor) -> None:
        """Try the loss on every label: one that it does not take would end training at a step that tells whose it is.

        Args:
            labels: Of all examples, (n, ...).
            outputs: The model's, for some example, (1, ...).

        Raises:
            InputError: naming y, or if the model has several outputs.
        """
        _check_one_output(outputs)
        if self._sparse:
            self._check_classes(labels.numpy(), outputs.shape[-1])
        rows = max(1, _TRIED_NUMBERS // max(1, int(tf.size(outputs))))
        for start in range(0, len(labels), rows):
            some = labels[start : start + rows]
            try:
                values = self(some, tf.repeat(outputs[:1], len(some), 0))
            except (ValueError, TypeError, tf.errors.OpError) as error:
                if isinstance(error, InputError):
                    raise
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise InputError(f"Expected y to be labels that the loss takes: {said}") from error
            if values.shape != (len(some),):
                shape = tuple(values.shape)
                raise InputError(f"Expected the loss to give one value an example, got {shape} for {len(some)} of y.")

    def _check_classes(self, labels, classes):
        """Sparse losses take class indices."""
        kept = labels if self._ignored is None else labels[labels != self._ignored]
        wrong = kept[(kept < 0) | (kept >= classes) | (kept != np.floor(kept))]
        if wrong.size:
            raise InputError(f"Expected y to hold whole numbers from 0 to {classes - 1}, got {wrong[0]}.")


def _check_one_output(outputs):
    if not tf.is_tensor(outputs):
        raise InputError(f"Expected the model to have one output, got {len(outputs)}; train them one at a time.")


def _like(mask, values):
    """The mask's shape with axes of one appended, to go with ``values``."""
    return tf.concat([tf.shape(mask), tf.ones(len(values.shape) - len(mask.shape), tf.int32)], 0)
