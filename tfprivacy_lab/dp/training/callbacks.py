"""Keras callbacks that know what was spent."""

from __future__ import annotations

import threading

import keras

from tfprivacy_lab.checks import InputError, check_finite_number
from tfprivacy_lab.dp.accounting import phases
from tfprivacy_lab.dp.accounting.gaussian import check_delta


class EpsilonLogger(keras.callbacks.Callback):
    """Puts ``epsilon`` among the logs of every epoch; ``PrivateModel.fit`` adds it by itself.

    How many steps an epoch will have taken is known when it begins, so its ε is computed beside it; if it ends
    otherwise, ε is computed for what was done.
    """

    def __init__(self):
        super().__init__()
        self._expected, self._thread, self._found = None, None, {}

    def on_epoch_begin(self, epoch, logs=None):
        """Begin with the ε of an epoch that runs to its end."""
        self._expected = tuple(phases.extended(self.model.phases(), self.params["steps"]))
        self._thread = threading.Thread(target=self._compute, args=(self._expected,), daemon=True)
        self._thread.start()

    def on_epoch_end(self, epoch, logs=None):
        """ε spent so far, at the model's δ."""
        self._thread.join()
        if logs is not None:
            as_expected = tuple(self.model.phases()) == self._expected and self._expected in self._found
            logs["epsilon"] = self._found[self._expected] if as_expected else self.model.epsilon()

    def _compute(self, spent):
        self._found = {spent: phases.epsilon_of(list(spent), self.model.delta)}


class StopBeforeBudget(keras.callbacks.Callback):
    """Ends training before the step that would pass a budget, never after.

    Args:
        epsilon: Budget ε > 0, of all the model's training together, earlier calls of ``fit`` included.
        delta: δ in (0, 1); default the model's.

    The number of steps that fit, of those that are planned, is computed before the first; the model's own step
    counter refuses any further one, whatever other callbacks do.
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
        if self.model.steps_allowed() and self.model.allow_steps_within(self.epsilon, delta) < 1:
            raise InputError(
                f"The budget epsilon={self.epsilon:g} at delta={delta:g} leaves no step: epsilon="
                f"{self.model.epsilon(delta):.4g} is spent, and one more step passes it; raise epsilon or the noise."
            )

    def on_train_batch_end(self, batch, logs=None):
        """Stop once the last step that fits is done."""
        if self.model.steps_allowed() < 1:
            self.model.stop_training = True
