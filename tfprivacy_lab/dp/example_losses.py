"""Losses with one entry an example, from any Keras loss that can be taken apart so."""

from __future__ import annotations

import tensorflow as tf

from tfprivacy_lab.checks import InputError

_Loss = tf.keras.losses.Loss


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
                loss = tf.keras.losses.get(loss)
            except ValueError as error:
                raise InputError(f"Expected loss to be a Keras loss, got loss={loss!r}.") from error
        if isinstance(loss, dict | list | tuple) or not callable(loss):
            raise InputError(f"Expected loss to be one Keras loss for one output, got {type(loss).__name__}.")
        self._sums = isinstance(loss, _Loss) and loss.reduction == tf.keras.losses.Reduction.SUM
        self._function = loss.call if isinstance(loss, _Loss) else loss

    def __call__(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Losses, (batch,).

        Raises:
            InputError: if the loss is a number already, or the model has several outputs.
        """
        if not tf.is_tensor(outputs):
            raise InputError(f"Expected the model to have one output, got {len(outputs)}; train them one at a time.")
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
        over = list(range(1, len(values.shape)))
        mask = getattr(outputs, "_keras_mask", None)
        if mask is None or not over:
            return values if not over else (tf.reduce_sum if self._sums else tf.reduce_mean)(values, over)
        mask = tf.cast(tf.broadcast_to(tf.reshape(mask, _like(mask, values)), tf.shape(values)), values.dtype)
        total = tf.reduce_sum(values * mask, over)
        return total if self._sums else tf.math.divide_no_nan(total, tf.reduce_sum(mask, over))


def _like(mask, values):
    """The mask's shape with axes of one appended, to go with ``values``."""
    return tf.concat([tf.shape(mask), tf.ones(len(values.shape) - len(mask.shape), tf.int32)], 0)
