"""Keras callbacks that know what was spent."""

from __future__ import annotations

import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_finite_number
from tfprivacy_lab.dp.accounting import check_delta


class EpsilonLogger(tf.keras.callbacks.Callback):
    """Puts ``epsilon`` among the logs of every epoch; ``PrivateModel.fit`` adds it by itself."""

    def on_epoch_end(self, epoch, logs=None):
        """ε spent so far, at the model's δ."""
        if logs is not None:
            logs["epsilon"] = self.model.epsilon()


class StopBeforeBudget(tf.keras.callbacks.Callback):
    """Ends training before the step that would pass a budget, never after.

    Args:
        epsilon: Budget ε > 0, of all the model's training together, earlier calls of ``fit`` included.
        delta: δ in (0, 1); default the model's.

    The number of steps that fit is computed before the first; the model's own step counter refuses any
    further one, whatever other callbacks do.
    """

    def __init__(self, epsilon: float, delta: float | None = None):
        super().__init__()
        self.epsilon = check_finite_number("epsilon", epsilon, above=0)
        self.delta = None if delta is None else check_delta(delta)

    def on_train_begin(self, logs=None):
        """Work out how many steps fit.

        Raises:
            InputError: if not even one does.
        """
        delta = self.model.delta if self.delta is None else self.delta
        if self.model.allow_steps_within(self.epsilon, delta) < 1:
            raise InputError(
                f"The budget epsilon={self.epsilon:g} at delta={delta:g} leaves no step: epsilon="
                f"{self.model.epsilon(delta):.4g} is spent, and one more step passes it; raise epsilon or the noise."
            )

    def on_train_batch_end(self, batch, logs=None):
        """Stop once the last step that fits is done."""
        if self.model.steps_allowed() < 1:
            self.model.stop_training = True
