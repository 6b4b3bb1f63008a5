r"""Going on with a private model in another process: weights, optimizer, clipping norm, and what they cost so far.

One ``.npz`` file, mode 0600, written beside and renamed: a process killed while it writes leaves the former one. It
holds no pickled object, no figure of training examples, and of the seeds no more than their fingerprints. What comes
after a resume is drawn under another seed, so no noise and no sample comes twice:

``private.fit(...); private.save_checkpoint("run.npz")``, and later, around a model built as before,
``private = PrivateModel(model, ...); private.compile(...); private.restore_checkpoint("run.npz"); private.fit(...)``
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings

import keras
import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting.phases import SAMPLINGS, Phase
from tfprivacy_lab.dp.training import lineage
from tfprivacy_lab.dp.training.record import TrainingRecord, fingerprint
from tfprivacy_lab.dp.training.steps import NoisySteps
from tfprivacy_lab.dp.validation import models

_FORMAT = "tfprivacy_lab checkpoint 1"
_WHAT = "the checkpoint"


class Resumable:
    """The part of a private model that can be put down and taken up again."""

    model: keras.Model
    _record: TrainingRecord
    _noisy_steps: NoisySteps
    _seed: int

    def save_checkpoint(self, path) -> None:
        """Write what it takes to go on: weights, optimizer state, adaptive clipping norm, phases, hashes of seeds.

        Args:
            path: The file to write or replace; ``.npz``.

        Raises:
            InputError: if the model is not compiled, is of the reference engine, or the file cannot be written.

        Guarantee: what the file holds follows from weights and noisy gradients alone, at the ε of its phases.
        Not covered: who may write the file; its digest finds damage, not forgers.
        """
        _check_engine(self, "save_checkpoint")
        self._build_optimizer()
        record = {
            "format": _FORMAT,
            "phases": [dataclasses.asdict(phase) for phase in self.phases() if phase.steps],
            "uncharged": [
                dataclasses.asdict(phase)
                for phase in self.uncharged_phases()
                if phase.steps and not self._record.is_charged
            ],
            "streams": [stream for one in [*self._others(), self._record] for stream in one.streams()],
            "not_covered": self.privacy_notes(),
            "steps_under_way": self.steps_allowed() if self._record.is_open else 0,
            "adaptive_clip": self._noisy_steps.adaptive_clip,
            "optimizer": type(self.optimizer).__name__,
            "learning_rate": _learning_rate(self.optimizer),
        }
        weights = [variable.numpy() for variable in self.model.weights]
        optimizer = [variable.numpy() for variable in _variables(self.optimizer)]
        arrays = {f"weight_{i}": array for i, array in enumerate(weights)}
        arrays |= {f"optimizer_{i}": array for i, array in enumerate(optimizer)}
        arrays["record"] = np.frombuffer(json.dumps(record, allow_nan=False).encode(), np.uint8)
        files.write_private_arrays(path, **arrays, digest=_digest(arrays))

    def restore_checkpoint(self, path) -> None:
        """Go on from what :meth:`save_checkpoint` wrote: ε, budgets and ledgers count all that it cost.

        Called on a new, compiled PrivateModel, around a model built as the former was. Noise multiplier, batch size
        and the like are the new object's; what a ledger was not charged for is charged with the next fit, under a name
        of its own, as the noise has another seed.

        Args:
            path: The file.

        Raises:
            InputError: naming the file, if it is damaged or of another model or optimizer; or if this model has drawn
                noise already, or would draw the checkpoint's again (its own seed is one of those). Nothing is
                changed then.

        Not covered: steps that an interrupted fit did after its last checkpoint, if anything of them was kept; a
        warning and ``privacy()`` say how many there may be.
        """
        _check_engine(self, "restore_checkpoint")
        if self._record.is_open or self._record.phases():
            raise InputError("restore_checkpoint comes before the first fit, on a new PrivateModel; make one.")
        record, weights, optimizer = _read(path)
        if any(stream["seed"] == fingerprint(self._seed) for stream in record["streams"]):
            raise InputError(
                f"The noise of {_WHAT} {path} was drawn by this PrivateModel's very seed, and would be drawn again; "
                "give another seed, or None for a fresh one."
            )
        if (record["adaptive_clip"] is None) != (self._noisy_steps.adaptive_clip is None):
            raise InputError(
                f"{_WHAT.capitalize()} {path} is of {'a fixed' if record['adaptive_clip'] is None else 'an adaptive'} "
                "l2_norm_clip, and this PrivateModel's is not; give l2_norm_clip as it was."
            )
        if record["optimizer"] != type(self.optimizer).__name__:
            raise InputError(
                f"{_WHAT.capitalize()} {path} is of the optimizer {record['optimizer']}, got "
                f"{type(self.optimizer).__name__}; compile with that."
            )
        _check_fit(path, "weights", self.model.weights, weights)
        self._build_optimizer()
        _check_fit(path, f"variables of {record['optimizer']}", _variables(self.optimizer), optimizer)
        self._take_up(record, weights, optimizer, path)

    def _build_optimizer(self):
        """Make the optimizer's slots, if no step has yet."""
        with self.distribute_strategy.scope():
            if not self.optimizer.built:
                self.optimizer.build(self.model.trainable_variables)

    def _take_up(self, record, weights, optimizer, path):
        """Set everything, once all of it is known to fit."""
        for variable, array in zip(
            [*self.model.weights, *_variables(self.optimizer)], weights + optimizer, strict=True
        ):
            variable.assign(array)
        if record["learning_rate"] is not None and _learning_rate(self.optimizer) is not None:
            self.optimizer.learning_rate = record["learning_rate"]
        if record["adaptive_clip"] is not None:
            self._noisy_steps.go_on_from(record["adaptive_clip"])
        lineage.forget(self.model)
        # Layers that are frozen here may have been trained there.
        lineage.mark(self.model, self._record, frozen=True)
        self._record.carry(record["phases"], record["uncharged"], record["streams"], record["not_covered"])
        self._left_at = models.training_state(self)
        lost = record["steps_under_way"]
        if lost:
            self._record.note(
                f"up to {lost} steps of a fit that was under way when its checkpoint was written, if kept"
            )
            warnings.warn(
                f"{_WHAT.capitalize()} {path} was written while a fit was under way: up to {lost} steps may have been "
                "done after it. They are not in epsilon(): keep nothing that came of them.",
                stacklevel=3,
            )


class SaveCheckpoint(keras.callbacks.Callback):
    """Writes a checkpoint at the end of every epoch of a ``PrivateModel.fit``, over the former.

    Args:
        path: The file, which :meth:`Resumable.restore_checkpoint` reads.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        """Write it."""
        self.model.save_checkpoint(self.path)


def _check_engine(private, name):
    if getattr(private, "optimizer", None) is None:
        raise InputError(f"The model is not compiled; call compile(optimizer, loss) before {name}.")
    if private.engine != "fast":
        raise InputError(
            f"{name} is for engine='fast', got engine={private.engine!r}, whose momentum lies in DPKerasSGDOptimizer."
        )


def _read(path):
    """The record of a checkpoint as phases and plain values, its weights, and its optimizer's arrays."""
    arrays = files.read_arrays(path, _WHAT)
    digest = arrays.pop("digest", None)
    if digest is None or "record" not in arrays:
        raise InputError(f"Cannot read {_WHAT} {path}: it is no checkpoint of a PrivateModel.")
    if not np.array_equal(digest, _digest(arrays)):
        raise InputError(f"Cannot read {_WHAT} {path}: damaged or changed, its digest does not hold.")
    try:
        record = json.loads(arrays["record"].tobytes())
        record["phases"] = [_phase(value) for value in record["phases"]]
        record["uncharged"] = [_phase(value) for value in record["uncharged"]]
        record["streams"] = [
            {"seed": str(one["seed"]), "steps": check_positive_int("steps", one["steps"], at_least=0)}
            for one in record["streams"]
        ]
        record["not_covered"] = [str(text) for text in record["not_covered"]]
        check_positive_int("steps_under_way", record["steps_under_way"], at_least=0)
        for name in ("adaptive_clip", "learning_rate"):
            if record[name] is not None:
                check_finite_number(name, record[name], at_least=0)
        if record["format"] != _FORMAT or not isinstance(record["optimizer"], str):
            raise InputError(f"of format {record['format']!r:.60}, expected {_FORMAT!r}")
        weights, optimizer = ([arrays[name] for name in _numbered(arrays, kind)] for kind in ("weight", "optimizer"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {_WHAT} {path}: {error!s:.200}.") from error
    return record, weights, optimizer


def _phase(value) -> Phase:
    examples = check_positive_int("examples", value["examples"])
    return Phase(
        examples,
        check_positive_int("batch_size", value["batch_size"], at_most=examples),
        check_finite_number("noise_multiplier", value["noise_multiplier"], at_least=0),
        check_choice("sampling", value["sampling"], SAMPLINGS),
        check_positive_int("steps", value["steps"]),
    )


def _numbered(arrays, kind):
    return sorted((name for name in arrays if name.startswith(f"{kind}_")), key=lambda name: int(name.split("_")[1]))


def _digest(arrays) -> np.ndarray:
    """SHA-256 over all arrays, their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {np.shape(arrays[name])} ".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _check_fit(path, what, variables, arrays):
    """Refuse arrays that are not of the variables' number and shapes."""
    if len(variables) != len(arrays):
        raise InputError(
            f"{_WHAT.capitalize()} {path} holds {len(arrays)} {what}, and this model has {len(variables)}."
        )
    for variable, array in zip(variables, arrays, strict=True):
        if tuple(variable.shape) != array.shape or variable.dtype != array.dtype:
            raise InputError(
                f"{_WHAT.capitalize()} {path} has {what} that do not fit: {variable.name!r} is {variable.dtype} "
                f"of shape {tuple(variable.shape)}, got {array.dtype} of shape {array.shape}."
            )


def _variables(optimizer) -> list[keras.Variable]:
    """All that an optimizer keeps between steps but the learning rate, which is kept by itself."""
    rate = getattr(optimizer, "learning_rate", None)
    return [variable for variable in optimizer.variables if variable is not rate]


def _learning_rate(optimizer) -> float | None:
    """The rate as it is now, None for a schedule."""
    if not isinstance(optimizer.get_config().get("learning_rate"), float | int | np.number):
        return None
    return float(optimizer.learning_rate.numpy())
