"""A budget per data set that outlives runs: counted before the noise is drawn, never given back.

One SQLite file. Its first row is the budget; every later row says that a run is about to draw noise. A row is
committed to disk before :meth:`Ledger.register` returns, so that a process killed anywhere has been charged for at
least what it drew. Rows are never changed: triggers refuse it, and a chain of hashes shows it if something else did.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting import composition, events, gaussian
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import Mechanism
from tfprivacy_lab.dp.ledger.file import Entry, LedgerFile

_SEED_DIGITS = 32  # of a fingerprint: the hash of the noise seed alone
_FINISHED = -1  # the part under which a run is marked as finished


@dataclasses.dataclass(frozen=True)
class Reservation:
    """What :meth:`Ledger.register` grants: noise for ``event`` may now be drawn.

    Attributes:
        run: The run's name.
        part: 0 for what was registered first, then 1, 2, …
        charged: False if this very part was registered before: a resumed run.
        spent: ε of all entries of the ledger, this one included, at the ledger's δ.
        remaining: Total ε less ``spent``. Not what a next run may cost: composition is no sum.
    """

    run: str
    part: int
    charged: bool
    spent: float
    remaining: float


class Ledger:
    r"""The budget (ε, δ) of one data set, and everything that was ever charged to it.

    Guarantee: the outputs of all registered runs together are (ε, δ)-DP for that data set, add-or-remove-one, as
    :func:`.compose` accounts them, whichever processes are killed when; two processes
    that register at once are served one after the other.

    Not covered: noise drawn without registering; data copied out and trained on elsewhere; a second ledger for the
    same people; a registered noise seed used again where nothing registers; runs planned by looking at the results of
    former ones (see compose); whoever may write the file rewriting all of it (note the head's hash elsewhere); a
    file on a network disk whose locks do not hold.
    """

    def __init__(self, path, dataset: str | None = None):
        """Open a ledger; :meth:`open` says the same."""
        self._file = LedgerFile(path)
        self.path, rows = self._file.path, self._file.read()
        self.dataset, self.epsilon, self.delta = rows.dataset, rows.epsilon, rows.delta
        if dataset is not None and dataset != self.dataset:
            raise InputError(
                f"Ledger {self.path} is for the data set {self.dataset:.16}, got dataset={dataset!r:.18}; use the "
                "ledger of the data."
            )

    @classmethod
    def create(cls, path, dataset: str, epsilon: float, delta: float) -> Ledger:
        """Make a ledger, mode 0600; whole or not at all, and never over a file that is there.

        Args:
            path: The file to make.
            dataset: SHA-256 of the data set as hexadecimal digits, or another lasting name of it.
            epsilon: Total budget ε > 0.
            delta: Total budget δ in (0, 1), the same for all runs together.

        Raises:
            InputError: naming the argument, or if the file is there.
        """
        if not isinstance(dataset, str) or not re.fullmatch(r"[\w.:/-]{1,200}", dataset):
            raise InputError(
                f"Expected dataset to be a digest or name of 1 to 200 plain characters, got {dataset!r:.80}."
            )
        epsilon = check_finite_number("epsilon", epsilon, above=0, at_most=1000)
        gaussian.check_delta(delta)
        LedgerFile.create(path, dataset, epsilon, float(delta))
        return cls(path)

    @classmethod
    def open(cls, path, dataset: str | None = None) -> Ledger:
        """Open a ledger and check all of it.

        Args:
            path: The file.
            dataset: If given, the digest of the data set that is to be used; it must be the ledger's.

        Raises:
            InputError: if it is missing, no ledger, damaged, edited, or another data set's.
        """
        return cls(path, dataset)

    def register(self, run: str, event, *, noise_seed: int | None = None, settings=None) -> Reservation:
        """Charge a run before it draws its first noise, or refuse it.

        Args:
            run: Name of the run, unique to it; :func:`run_name` makes one.
            event: What the run will do: :class:`~tfprivacy_lab.dp.accounting.gaussian.DpSgdRun` or an event, for
                add-or-remove-one; what holds for zero-out alone (shuffled batches) is refused.
            noise_seed: The kept seed of all its randomness, if a resumed run draws the same noise again. Only its
                hash is stored.
            settings: JSON-ready; everything else that decides the run. The same noise under other settings would
                cancel, so a seed is bound to one run and its settings.

        Returns:
            A Reservation. If run, event, seed and settings are those of an entry that is there, nothing is charged.

        Raises:
            InputError: naming spent, asked and total if the budget would be passed; if the name stands for
                another run, or for one without a kept seed; or if another run has the seed.
        """
        return self._append(run, 0, composition.event_of(event), _fingerprint(noise_seed, settings))

    def extend(self, run: str, part: int, event, *, noise_seed: int | None = None, settings=None) -> Reservation:
        """Charge the next part of a registered run (an epoch, a step) before its noise is drawn.

        Args:
            run: Name given to :meth:`register`, which charged part 0.
            part: 1, 2, …: parts follow one another. A part that is there is not charged again.
            event: What the part will do.
            noise_seed: As for :meth:`register`; must be the same.
            settings: As for :meth:`register`; must be the same.

        Raises:
            InputError: as :meth:`register`; or if the part does not follow, or the run is finished.
        """
        check_positive_int("part", part)
        return self._append(run, part, composition.event_of(event), _fingerprint(noise_seed, settings))

    def finish(self, run: str) -> None:
        """Note that a run is over: it can be extended no more. Gives nothing back.

        Raises:
            InputError: if no such run is registered.
        """
        with self._file.writing() as (rows, append):
            of_run = [entry for entry in rows.entries if entry.run == run]
            if not of_run:
                raise InputError(f"Ledger {self.path} has no run {run!r}; register it before it draws noise.")
            if of_run[-1].kind != "finish":
                append("finish", run, _FINISHED, "", of_run[0].fingerprint)

    def entries(self) -> tuple[Entry, ...]:
        """All rows, checked, in the order in which they were written."""
        return self._file.read().entries

    def spent(self) -> float:
        """ε of everything registered, at the ledger's δ."""
        return self._cost(_mechanisms(self.entries()))

    def show(self) -> dict:
        """JSON-ready: the budget, what is spent, and by which run (each run's ε is what it would cost alone)."""
        rows = self._file.read()
        runs: dict[str, dict] = {}
        for entry in rows.entries:
            run = runs.setdefault(entry.run, {"run": entry.run, "finished": False, "events": []})
            if entry.event is None:
                run["finished"] = True
            else:
                run["events"].append(entry)
        for run in runs.values():
            logged = run.pop("events")
            run |= {"parts": len(logged), "epsilon_alone": self._cost(_mechanisms(logged))}
            run["events"] = [events.to_json(entry.event) for entry in logged]
        spent = self._cost(_mechanisms(rows.entries))
        return {
            "ledger": str(self.path),
            "dataset": self.dataset,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "spent": spent,
            "remaining": max(0.0, self.epsilon - spent),
            "accountant": gaussian.accountant_name(),
            "adjacency": gaussian.ADJACENCY,
            "entries": len(rows.entries),
            "head": rows.head,
            "runs": list(runs.values()),
        }

    def _append(self, run, part, event, fingerprint) -> Reservation:
        """Charge one part, or find it charged."""
        if not isinstance(run, str) or not re.fullmatch(r"[\w.:/@-]{1,200}", run):
            raise InputError(f"Expected run to be a name of 1 to 200 plain characters, got run={run!r:.80}.")
        text, asked = events.dumps(event), events.mechanisms(event)
        # Before the lock is taken: what is computed here is kept, so that others wait for less.
        self._cost(composition.sum_of_mechanisms([_mechanisms(self.entries()), asked]))
        with self._file.writing() as (rows, append):
            earlier = self._earlier(rows.entries, run, part, text, fingerprint)
            before = _mechanisms(rows.entries)
            total = self._cost(before if earlier else composition.sum_of_mechanisms([before, asked]))
            if not earlier:
                if total > self.epsilon:
                    self._refuse(run, self._cost(asked), self._cost(before), total)
                append("extend" if part else "register", run, part, text, fingerprint)
        return Reservation(run, part, not earlier, total, max(0.0, self.epsilon - total))

    def _earlier(self, known, run, part, text, fingerprint) -> bool:
        """Whether this part of this run is registered; refuses what is neither that nor new."""
        of_run = [entry for entry in known if entry.run == run]
        same = [entry for entry in of_run if entry.part == part]
        if of_run and of_run[0].fingerprint != fingerprint:
            raise InputError(f"Run {run!r} is registered with another noise seed or other settings; use another name.")
        self._check_seed_is_new(known, run, fingerprint)
        if same:
            if events.dumps(same[0].event) != text:
                raise InputError(f"Run {run!r} is registered with another event as part {part}; use another name.")
            if not fingerprint:
                raise InputError(
                    f"Run {run!r} is registered and kept no noise seed, so its noise is spent; use another name."
                )
            return True
        if of_run and of_run[-1].kind == "finish":
            raise InputError(f"Run {run!r} is finished; use another name.")
        if part != len(of_run):
            raise InputError(f"Expected part={len(of_run)} of run {run!r} to come next, got part={part}.")
        return False

    def _check_seed_is_new(self, known, run, fingerprint):
        """Two runs of one seed draw the same noise, which their difference is free of."""
        seed = fingerprint[:_SEED_DIGITS]
        others = [entry.run for entry in known if entry.run != run and seed and entry.fingerprint.startswith(seed)]
        if others:
            raise InputError(
                f"Ledger {self.path} refuses run {run!r}: run {others[0]!r} has the same noise seed, and noise that is "
                "drawn twice hides nothing; use another seed."
            )

    def _refuse(self, run, asked, spent, total):
        raise InputError(
            f"Ledger {self.path} refuses run {run!r}: spent epsilon={spent:.6g}, asked {asked:.6g}, "
            f"together {total:.6g}, above the total of epsilon={self.epsilon:g} at delta={self.delta:g}; use more "
            "noise, fewer steps, or other data."
        )

    def _cost(self, mechanisms) -> float:
        return composition.epsilon_of_mechanisms(mechanisms, self.delta) if mechanisms else 0.0


def _mechanisms(logged) -> dict[Mechanism, int]:
    """How often each mechanism is used by entries, however many there are."""
    return composition.sum_of_mechanisms(entry.mechanisms for entry in logged)


def run_name(recipe: str, *, noise_seed: int, settings) -> str:
    """A name that a resumed run finds again and no other run has: the recipe and a hash of seed and settings."""
    return f"{recipe}-{_fingerprint(noise_seed, settings)[_SEED_DIGITS:][:16]}"


def dataset_digest(*splits) -> str:
    """SHA-256 of all examples of some splits, the same however they are split and ordered: what a ledger is for.

    Args:
        splits: Objects with ``images`` (n, …) and ``labels`` (n,), arrays; together the whole private set.
    """
    digests = [
        hashlib.sha256(np.ascontiguousarray(image).tobytes() + np.asarray(label).tobytes()).digest()
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _fingerprint(noise_seed, settings) -> str:
    """Hash of the kept seed, then of seed and what else decides a run; empty if no seed is kept."""
    if noise_seed is None:
        return ""
    check_positive_int("noise_seed", noise_seed, at_least=0)
    try:
        bound = json.dumps([int(noise_seed), settings], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected settings to be JSON-ready, got {settings!r:.80} ({error}).") from error
    alone = hashlib.sha256(b"tfprivacy_lab noise seed\0" + str(int(noise_seed)).encode()).hexdigest()
    return alone[:_SEED_DIGITS] + hashlib.sha256(b"tfprivacy_lab ledger\0" + bound.encode()).hexdigest()
