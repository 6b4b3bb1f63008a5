"""A ledger in Keras style: a callback that charges a fit before its first noise is drawn."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import keras

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.ledger.ledger import Ledger, Reservation


class LedgerCallback(keras.callbacks.Callback):
    """Charges a :class:`.Ledger` for a ``PrivateModel.fit``, or refuses it, before it begins.

    ``private.fit(x, y, 256, epochs=10, callbacks=[LedgerCallback(ledger, "spring")])``

    Charged is what the call plans, all its epochs, and what the model did before without a charge; fewer if a
    :class:`.StopBeforeBudget` stands before it in the list. Nothing is given back to a fit
    that ends early. Further calls for the same model go under the same name, as further parts of the run; a model that
    goes on from a checkpoint takes a new name, as its noise has another seed.

    Args:
        ledger: A Ledger, or the path of one.
        run: Name of the run, new to the ledger.

    Raises:
        InputError: from ``fit``, if it would overspend, the name or the noise's seed is another run's, batches are
            shuffled (they hold for zero-out adjacency alone), or there is no noise.

    Guarantee: that of the Ledger, for the examples that it stands for. Not covered: whether those are the examples
    that ``fit`` is given; loss, metrics and validation figures; with several workers, charge on one of them.
    """

    def __init__(self, ledger: Ledger | str, run: str):
        super().__init__()
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger.open(ledger)
        self.run = run
        self.reservation: Reservation | None = None

    def on_train_begin(self, logs=None):
        """Charge the steps that may come.

        Raises:
            InputError: see the class.
        """
        *before, coming = self.model.uncharged_phases()
        coming = dataclasses.replace(coming, steps=coming.steps + self.model.steps_allowed())
        phases = [phase for phase in (*before, coming) if phase.steps]
        if not phases:
            return
        if min(phase.noise_multiplier for phase in phases) == 0:
            raise InputError(f"Run {self.run!r} draws no noise, which costs {math.inf}; set noise_multiplier above 0.")
        events = [phase.event() for phase in phases]
        event = events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)
        self.reservation = self.model.charge(self.ledger, self.run, event)
