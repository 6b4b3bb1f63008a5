"""Which fits under DP a model's weights come from, whoever wraps them next.

Records are kept by layer, weakly: a model that shares a trained layer with another shares its past, and a past ends
with the last layer that has it. A copy of the weights (``set_weights``, a file) is another object, and has none.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref

import keras

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.phases import Phase
from tfprivacy_lab.dp.training.record import TrainingRecord, fingerprint
from tfprivacy_lab.models.keras_internals import layers_of

_RECORDS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class FinishedFit:
    """What was done to a model by something other than a ``PrivateModel``.

    Attributes:
        done: Its phases.
        seed: The seed of its noise.
        not_covered: What it cost beside, in words, where no phase can say it.
    """

    done: list[Phase]
    seed: int
    not_covered: tuple[str, ...] = ()

    def phases(self) -> list[Phase]:
        """What was done."""
        return self.done

    def uncharged_phases(self) -> list[Phase]:
        """Its owner charges for it."""
        return []

    def settle(self) -> None:
        """Nothing is left to charge."""

    def streams(self) -> list[dict]:
        """Seeds, and the steps under each."""
        return [{"seed": fingerprint(self.seed), "steps": sum(phase.steps for phase in self.done)}]


def mark(model: keras.Model, record, *, frozen: bool = False) -> None:
    """From here on ``record`` is part of the past of all layers that are trained now, or with ``frozen`` of all."""
    for layer in layers_of(model):
        if layer.trainable_weights or (frozen and layer.weights):
            records = _RECORDS.setdefault(layer, [])
            if not any(known is record for known in records):
                records.append(record)


def forget(model: keras.Model) -> None:
    """The model's weights are to be those of a checkpoint: its past is what the checkpoint says."""
    for layer in layers_of(model):
        _RECORDS.pop(layer, None)


def records_of(model: keras.Model, besides=None) -> list:
    """The records of all fits that trained a layer of the model, oldest first, but one."""
    found = []
    for layer in layers_of(model):
        for record in _RECORDS.get(layer, ()):
            if record is not besides and not any(known is record for known in found):
                found.append(record)
    return found


def begin(model: keras.Model, seed: int) -> TrainingRecord:
    """The record of a new ``PrivateModel``; says so if the model was fitted under DP before.

    Raises:
        InputError: if the noise of that fit would be drawn again.
    """
    record, others = TrainingRecord(seed), records_of(model)
    for text in (text for other in others if isinstance(other, FinishedFit) for text in other.not_covered):
        warnings.warn(
            f"Model {model.name!r} was fitted under differential privacy before: {text}. epsilon() does not count it; "
            "privacy() states it.",
            stacklevel=3,
        )
    earlier = [other for other in others if any(phase.steps for phase in other.phases())]
    if not earlier:
        return record
    if any(stream["seed"] == fingerprint(seed) for other in earlier for stream in other.streams()):
        raise InputError(
            f"Model {model.name!r} was fitted under differential privacy with this very seed: the same noise on other "
            "weights would cancel; give another seed, or None for a fresh one."
        )
    steps = sum(phase.steps for other in earlier for phase in other.phases())
    warnings.warn(
        f"Model {model.name!r} was fitted under differential privacy before, for {steps} steps: epsilon() and phases() "
        "count them with what comes. Training that has nothing to do with them begins from a fresh model "
        "(keras.models.clone_model).",
        stacklevel=3,
    )
    return record
