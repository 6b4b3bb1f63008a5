"""What callbacks of a private fit may look at: what they choose by un-noised private figures is outside ε.

Training loss and metrics are computed from private rows without noise. A callback that stops, saves or writes by them
releases them. So the callbacks of ``PrivateModel.fit`` are handed the logs without them: ``epsilon``, the learning
rate, what other callbacks add, and ``val_`` figures, whose rows the caller chose. Keras' progress bar and History show
all figures, to whoever runs the fit.
"""

from __future__ import annotations

import functools
import string
import warnings

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.validation import models
from tfprivacy_lab.models.keras_internals import profiles

callbacks_of_keras = keras.callbacks
# What a monitor may be beside validation figures.
PUBLIC_FIGURES = ("epsilon", "learning_rate")
_PLACES = ("epoch", "batch")
_SHOWS = (callbacks_of_keras.History, callbacks_of_keras.ProgbarLogger)
_WRITES = (callbacks_of_keras.CSVLogger, callbacks_of_keras.TensorBoard, callbacks_of_keras.RemoteMonitor)
_OF_VALIDATION = (
    "validation figures, computed from validation_data without noise, and what callbacks choose by them or write of "
    "them, unless those rows are public"
)


class PublicLogs(callbacks_of_keras.Callback):
    """Hands a fit's events to callbacks, in their order, with the logs but for training figures.

    Args:
        callbacks: The callbacks.

    Not covered: a callback that goes to the model's metrics or History by itself.
    """

    def __init__(self, callbacks: list):
        super().__init__()
        self._callbacks = callbacks

    def set_params(self, params):
        """As Keras'."""
        super().set_params(params)
        self._pass("set_params", params)

    def set_model(self, model):
        """As Keras'."""
        super().set_model(model)
        self._pass("set_model", model)

    def on_train_begin(self, logs=None):
        """As Keras'."""
        self._pass("on_train_begin", WithoutTraining())

    def on_train_end(self, logs=None):
        """As Keras', without training figures."""
        self._pass("on_train_end", self._public(logs))

    def on_epoch_begin(self, epoch, logs=None):
        """As Keras'."""
        self._pass("on_epoch_begin", epoch, WithoutTraining())

    def on_epoch_end(self, epoch, logs=None):
        """As Keras', without training figures; what callbacks add to the logs is there for those that come after."""
        public = self._public(logs)
        self._pass("on_epoch_end", epoch, public)
        if logs is not None:
            logs.update(public)

    def on_train_batch_begin(self, batch, logs=None):
        """As Keras'."""
        self._pass("on_train_batch_begin", batch, WithoutTraining())

    def on_train_batch_end(self, batch, logs=None):
        """As Keras', without logs: all figures of a batch are training figures."""
        self._pass("on_train_batch_end", batch, WithoutTraining())

    def on_test_begin(self, logs=None):
        """As Keras': of validation."""
        self._pass("on_test_begin", logs)

    def on_test_end(self, logs=None):
        """As Keras': of validation."""
        self._pass("on_test_end", logs)

    def on_test_batch_begin(self, batch, logs=None):
        """As Keras': of validation."""
        self._pass("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        """As Keras': of validation."""
        self._pass("on_test_batch_end", batch, logs)

    def _pass(self, event, *arguments):
        for callback in self._callbacks:
            # TensorBoard writes what it is handed; nothing else does, see leaving_nothing_behind.
            with tf.summary.record_if(isinstance(callback, callbacks_of_keras.TensorBoard)):
                getattr(callback, event)(*arguments)

    def _public(self, logs):
        of_training = set(self.model.get_metrics_result())
        return WithoutTraining(
            (name, value)
            for name, value in (logs or {}).items()
            if name not in of_training and (name in PUBLIC_FIGURES or name.startswith("val_"))
        )


class WithoutTraining(dict):
    """Logs that say why a training figure is not among them."""

    def __missing__(self, name):
        raise InputError(
            f"logs[{name!r}] is not for callbacks of a private fit: training figures are computed from private rows "
            "without noise; use logs['epsilon'] or a val_ figure of public validation_data."
        )


def admitted(callbacks, model, validation_data) -> list:
    """What Keras' ``fit`` is to be given: callbacks that only show, and the others behind :class:`PublicLogs`.

    Args:
        callbacks: Callbacks as Keras takes them: one, a list, nested lists, a CallbackList, or None.
        model: The private model, whose statement notes what its validation data are used for.
        validation_data: That of ``fit``, or None.

    Raises:
        InputError: naming the callback that training figures, or a secret, would steer or leave by.
    """
    given = [callback for part in tf.nest.flatten(callbacks) if part is not None for callback in _members(part)]
    for callback in given:
        _check(callback, validation_data)
    using = [_name(callback) for callback in given if _uses_validation(callback, validation_data)]
    if using and model._record.note(_OF_VALIDATION):
        warnings.warn(
            f"{using[0]} goes by val_ figures, which are computed from validation_data without noise: what it chooses "
            "or writes is outside epsilon unless those rows are public; privacy() states it under 'not_covered'.",
            stacklevel=4,
        )
    shows = [callback for callback in given if type(callback) in _SHOWS]
    others = [callback for callback in given if type(callback) not in _SHOWS]
    return [PublicLogs(others), *shows] if others else shows


def leaving_nothing_behind(fit):
    """The method, during which no default summary writer takes anything; after it, no metric holds a figure.

    Under such a writer a layer's summaries of what it sees, private examples, would leave in a file.
    """

    @functools.wraps(fit)
    def guarded(model, *arguments, **options):
        try:
            with tf.summary.record_if(False):
                return fit(model, *arguments, **options)
        finally:
            model.reset_metrics()
            models.without_figures(model.model)

    return guarded


def _members(callback):
    return callback.callbacks if isinstance(callback, callbacks_of_keras.CallbackList) else [callback]


def _name(callback):
    return type(callback).__name__


def _watched(callback) -> str | None:
    """The figure that a callback goes by, if any."""
    watched = getattr(callback, "monitor", None)
    # ModelCheckpoint looks at it only for the best.
    return watched if isinstance(watched, str) and getattr(callback, "save_best_only", True) else None


def _uses_validation(callback, validation_data) -> bool:
    if validation_data is None:
        return False
    names = [_watched(callback) or "", *_figures_in_path(callback)]
    return isinstance(callback, _WRITES) or any(name.startswith("val_") for name in names)


def _figures_in_path(callback):
    """The figures that a ModelCheckpoint writes into the names of its files."""
    path = getattr(callback, "filepath", None) if isinstance(callback, callbacks_of_keras.ModelCheckpoint) else None
    names = [field for _, field, _, _ in string.Formatter().parse(str(path or "")) if field]
    return [name for name in names if name not in _PLACES]


def _check(callback, validation_data) -> None:
    if not isinstance(callback, callbacks_of_keras.Callback):
        raise InputError(f"Expected callbacks to be Keras callbacks, got {callback!r}.")
    if isinstance(callback, (callbacks_of_keras.BackupAndRestore, getattr(callbacks_of_keras, "OrbaxCheckpoint", ()))):
        raise InputError(
            f"{_name(callback)} would bring back the weights without what they cost; leave it out, and put "
            "SaveCheckpoint(path) among the callbacks, which restore_checkpoint(path) goes on from."
        )
    if isinstance(callback, callbacks_of_keras.TerminateOnNaN):
        raise InputError(
            "TerminateOnNaN stops by the training loss, which one private row can make NaN; leave it out: gradients "
            "that are not finite take no part in a step."
        )
    if isinstance(callback, callbacks_of_keras.TensorBoard):
        _check_tensorboard(callback)
    if _watched(callback) == "epsilon" and getattr(callback, "mode", "min") == "auto":
        raise InputError(f"{_name(callback)} goes by 'epsilon', and Keras does not know which way; pass mode='min'.")
    for name in filter(None, [_watched(callback), *_figures_in_path(callback)]):
        if name in PUBLIC_FIGURES:
            continue
        if not name.startswith("val_"):
            raise InputError(
                f"{_name(callback)} goes by {name!r}: training figures are computed from private rows without noise, "
                "and what is chosen by them is outside epsilon; use monitor='epsilon', mode='min', or a 'val_' figure "
                "of public validation_data."
            )
        if validation_data is None:
            raise InputError(
                f"{_name(callback)} goes by {name!r}, and fit has no validation_data: it would never act; pass public "
                "validation_data, or use monitor='epsilon', mode='min'."
            )


def _check_tensorboard(callback):
    if profiles(callback):
        raise InputError(
            "TensorBoard(profile_batch=...) would write how long each step took, which follows how many examples were "
            "drawn, and that is secret; pass profile_batch=0."
        )
    if callback.update_freq != "epoch":
        raise InputError(
            f"TensorBoard(update_freq={callback.update_freq!r}) would write figures of training batches, "
            "which are computed from private rows without noise; pass update_freq='epoch'."
        )
