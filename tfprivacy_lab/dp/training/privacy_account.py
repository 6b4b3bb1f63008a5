"""What a model's training has spent, may still spend, and what beside: ε means nothing without its adjacency."""

from __future__ import annotations

import warnings

import keras

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.adjacency import ZERO_OUT
from tfprivacy_lab.dp.accounting.gaussian import ADJACENCY, accountant_name
from tfprivacy_lab.dp.accounting.phases import Phase, epsilon_of, further_steps_within
from tfprivacy_lab.dp.training import lineage
from tfprivacy_lab.dp.training.record import TrainingRecord
from tfprivacy_lab.dp.validation.preprocessing import not_covered_statistics

# What ε of a Keras fit never covers; a record adds what else came up.
NEVER_COVERED = (
    "the loss and metrics of training examples, which fit shows and its History holds",
    "the number of examples, which is treated as public",
)


class PrivacyAccount:
    """The part of a model that answers for its budget.

    Attributes:
        delta: δ at which ε is stated.
    """

    delta: float
    model: keras.Model
    _record: TrainingRecord
    _seed: int

    def phases(self) -> list[Phase]:
        """What was done so far to the model's weights, as events that any accountant can price.

        Counted are the fits of every PrivateModel that trained a layer of this model, and those that a restored
        checkpoint came from.
        """
        return [phase for record in [*self._others(), self._record] for phase in record.phases()]

    def _others(self):
        """Records of what others did to the layers of this model."""
        return lineage.records_of(self.model, besides=self._record)

    def epsilon(self, delta: float | None = None) -> float:
        """ε of :meth:`phases` together, at δ (default the model's); infinite without noise.

        Weights that were set or loaded from a file of weights bring no record of what they cost: add that run's phases,
        or go on from a checkpoint (:meth:`.restore_checkpoint`), which does.
        """
        return epsilon_of(self.phases(), self.delta if delta is None else delta)

    def privacy(self, delta: float | None = None) -> dict:
        """ε spent so far, and all that it holds for; see :func:`figures`."""
        not_covered = (*NEVER_COVERED, *self.privacy_notes(), *not_covered_statistics(self.model))
        return figures(self.phases(), self.delta if delta is None else delta, not_covered)

    def privacy_notes(self) -> list[str]:
        """What came up in training that lies outside ε, beside what always does; ``privacy()`` has it too."""
        noted = [text for record in [*self._others(), self._record] for text in record.not_covered]
        return list(dict.fromkeys(noted))

    def allow_steps_within(self, epsilon: float, delta: float) -> int:
        """Let the ``fit`` that is under way run no step that would pass (ε, δ); several limits hold together.

        Returns:
            How many of the steps that the ``fit`` has left fit; -1 if the budget is passed already.

        Raises:
            InputError: if no ``fit`` is under way: callbacks call this, see
                :class:`tfprivacy_lab.dp.training.callbacks.StopBeforeBudget`.
        """
        if not self._record.is_open:
            raise InputError("No fit is under way; pass StopBeforeBudget to fit as a callback.")
        left = further_steps_within(self.phases(), epsilon, delta, at_most=self.steps_allowed())
        self._record.allow(max(left, 0))
        return left

    def steps_allowed(self) -> int:
        """How many further steps the ``fit`` that is under way may run."""
        return self._record.steps_allowed()

    def uncharged_phases(self) -> list[Phase]:
        """What no ledger was charged for; the last is the phase that runs."""
        return [phase for record in [*self._others(), self._record] for phase in record.uncharged_phases()]

    def charge(self, ledger, run: str, event):
        """Register ``event`` of the ``fit`` that is under way; :class:`.LedgerCallback` calls it."""
        bound = {"noise_seed": self._seed, "settings": {"private_model": self._record.identity}}
        part = sum(entry.run == run for entry in ledger.entries())
        granted = ledger.extend(run, part, event, **bound) if part else ledger.register(run, event, **bound)
        self._record.charge()
        for record in self._others():
            record.settle()
        return granted


def figures(phases: list[Phase], delta: float, not_covered=()) -> dict:
    """ε of the phases and all that it holds for.

    Args:
        phases: What was done.
        delta: δ in (0, 1).
        not_covered: What lies outside ε, in words.

    Returns:
        ``epsilon``, ``delta``, ``accountant``, ``sampling``, ``amplification``, ``adjacency``, ``noise_multiplier``,
        ``steps`` and ``not_covered``. Shuffled batches get no amplification, and make the adjacency of all phases
        zero-out, under which a Poisson step costs the same. What differs between phases is a list, in order.
    """
    done = [phase for phase in phases if phase.steps]
    return {
        "epsilon": epsilon_of(phases, delta),
        "delta": delta,
        "accountant": accountant_name(),
        "sampling": _one_or_all([phase.sampling for phase in done]),
        "amplification": _one_or_all(["by sampling" if phase.sampling == "poisson" else "none" for phase in done]),
        "adjacency": ZERO_OUT if any(phase.sampling == "shuffled" for phase in done) else ADJACENCY,
        "noise_multiplier": _one_or_all([phase.noise_multiplier for phase in done]),
        "steps": sum(phase.steps for phase in done),
        "not_covered": list(not_covered),
    }


def warn_of_shuffling() -> None:
    """Say what the ε that ``fit`` is about to show holds for."""
    warnings.warn(
        "sampling='shuffled': epsilon is without amplification by sampling, and for zero-out adjacency (one example's "
        "gradient becomes zero while its place in the order stays); privacy() states it beside the figure.",
        stacklevel=4,
    )


def _one_or_all(values):
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found
