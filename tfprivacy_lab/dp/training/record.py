"""What a model's training did: how many steps of which kind, and how many more may come."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import NamedTuple

import tensorflow as tf

from tfprivacy_lab.dp.accounting.phases import Phase


@dataclasses.dataclass(frozen=True)
class StepKind:
    """Everything that a compiled step depends on.

    Attributes:
        examples: Private examples of all workers.
        batch_size: Expected size of a logical batch.
        noise_multiplier: Noise standard deviation over the clipping norm.
        sampling: "poisson" or "shuffled".
        rows: Rows computed at a time, None for all.
        padded: Whether logical batches are padded to multiples of ``rows``.
    """

    examples: int
    batch_size: int
    noise_multiplier: float
    sampling: str
    rows: int | None
    padded: bool


class PreparedFit(NamedTuple):
    """What a call of ``fit`` was found to be able to do.

    Attributes:
        examples: What :func:`tfprivacy_lab.dp.examples.arrays.checked` gave.
        callbacks: Those of the call, which see no training figures.
        kind: What its steps depend on.
        steps: Logical steps an epoch.
        planned: Logical steps in all.
    """

    examples: tuple
    callbacks: list
    kind: StepKind
    steps: int
    planned: int


def fingerprint(seed: int) -> str:
    """Tells a seed from others without giving it away; of 128 secret bits, that is."""
    return hashlib.sha256(f"noise seed {seed}".encode()).hexdigest()


class TrainingRecord:
    """Step counter, step limit and kinds of steps; no weights of the model, and in no saved file but a checkpoint.

    Args:
        seed: Of sampling and noise of the steps that are counted here; only its fingerprint is kept.

    Attributes:
        not_covered: What lies outside ε in this training, in words.
        identity: Tells this object from any other that draws by the same seed.
    """

    def __init__(self, seed: int):
        one = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._done = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=one, name="steps_done")
        self._allowed = tf.Variable(
            tf.int64.max, dtype=tf.int64, trainable=False, aggregation=one, name="steps_allowed"
        )
        self._kinds: list[tuple[StepKind, int]] = []
        self._charged, self._uncharged_from = False, 0
        self._fingerprint = fingerprint(seed)
        self._carried: list[Phase] = []
        self._carried_uncharged: list[Phase] = []
        self._carried_streams: list[dict] = []
        self.not_covered: list[str] = []
        self.identity = secrets.token_hex(16)
        self.is_open = False
        self.traced: StepKind | None = None

    @property
    def kind(self) -> StepKind:
        """The kind of the steps that run now."""
        return self._kinds[-1][0]

    def open(self, kind: StepKind, planned: int) -> None:
        """Steps from here on are of this kind, at most as many as are planned.

        Every call for shuffled batches begins a pass of its own, however few steps the former one had: an example
        may be in both, so they are never counted as one.
        """
        self._allowed.assign(self.steps() + planned)
        self.is_open = True
        if not self._kinds or self.kind != kind or kind.sampling == "shuffled":
            self._kinds.append((kind, self.steps()))
        self.traced = kind

    def close(self) -> None:
        """No step runs until the record is opened again."""
        self._allowed.assign(self.steps())
        self.is_open = False
        if self._charged:
            self._charged = False
            self.settle()

    def settle(self) -> None:
        """All that was done is in a ledger."""
        self._uncharged_from, self._carried_uncharged = self.steps(), []

    def charge(self) -> None:
        """What was done so far, and all that may come until the record is closed, is in a ledger."""
        self._charged = True

    def allow(self, further: int) -> None:
        """Allow so many further steps, or fewer if a stricter limit is set."""
        self._allowed.assign(min(int(self._allowed.numpy()), self.steps() + further))

    def steps_allowed(self) -> int:
        """How many further steps are allowed."""
        return int(self._allowed.numpy()) - self.steps()

    def retrace(self) -> None:
        """The next step is to be traced anew."""
        self.traced = None

    def steps(self) -> int:
        """Steps done."""
        return int(self._done.numpy())

    def count_step(self) -> tf.Tensor:
        """Count a step before its noise is drawn, and refuse it beyond the limit; returns its number."""
        number, allowed = tf.identity(self._done), tf.identity(self._allowed)
        told = ["This step would pass the privacy budget.", number, allowed]
        # The bare operation: tf.debugging's puts a conditional around it, at every step.
        check = tf.raw_ops.Assert(condition=number < allowed, data=told)
        with tf.control_dependencies([] if check is None else [check]):
            self._done.assign_add(1)
        return number

    def phases(self) -> list[Phase]:
        """All that was done, by kind, from a restored checkpoint on."""
        return [*self._carried, *self._phases_since(0)]

    def _phases_since(self, since) -> list[Phase]:
        """The steps done here, by kind; those before ``since`` are not counted."""
        ends = [*[first for _, first in self._kinds], self.steps()][1:]
        return [
            Phase(kind.examples, kind.batch_size, kind.noise_multiplier, kind.sampling, max(0, end - max(first, since)))
            for (kind, first), end in zip(self._kinds, ends, strict=True)
        ]

    def uncharged_phases(self) -> list[Phase]:
        """The steps done that no ledger knows of; the last phase is the one that runs, with none so far if charged."""
        return [*self._carried_uncharged, *self._phases_since(self._uncharged_from)]

    @property
    def is_charged(self) -> bool:
        """Whether a ledger knows of all that was done and of all that may come in the fit that is under way."""
        return self._charged

    def streams(self) -> list[dict]:
        """Under which seeds noise was drawn, as fingerprints, and how many steps under each."""
        return [*self._carried_streams, {"seed": self._fingerprint, "steps": self.steps()}]

    def carry(self, phases: list[Phase], uncharged: list[Phase], streams: list[dict], not_covered: list[str]) -> None:
        """What comes goes on from weights that another record is of, which a checkpoint kept."""
        self._carried, self._carried_uncharged, self._carried_streams = list(phases), list(uncharged), list(streams)
        self.not_covered[:0] = not_covered

    def note(self, not_covered: str) -> bool:
        """Note what lies outside ε; returns whether that is new."""
        if not_covered in self.not_covered:
            return False
        self.not_covered.append(not_covered)
        return True
