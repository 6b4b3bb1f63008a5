"""The file of a ledger: SQLite, append-only, each row chained to the one before by its hash.

A row is on disk before :meth:`LedgerFile.writing` ends. Nothing here knows what a row costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import sqlite3
import types
from collections.abc import Mapping
from pathlib import Path

import dp_accounting

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import events
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import Mechanism

_APPLICATION_ID = 0x54504C31  # "TPL1": tells a ledger from any other SQLite file
_PATIENCE = 300.0  # seconds to wait for another process that is registering

_TABLES = {
    "budget": (
        "CREATE TABLE budget (id INTEGER PRIMARY KEY CHECK (id = 0), dataset TEXT NOT NULL, epsilon REAL NOT NULL, "
        "delta REAL NOT NULL, hash TEXT NOT NULL)"
    ),
    "entries": (
        "CREATE TABLE entries (number INTEGER PRIMARY KEY CHECK (number > 0), kind TEXT NOT NULL, run TEXT NOT NULL, "
        "part INTEGER NOT NULL, event TEXT NOT NULL, fingerprint TEXT NOT NULL, hash TEXT NOT NULL, "
        "UNIQUE (run, part))"
    ),
}
_SCHEMA = _TABLES | {
    f"{table}_{verb.lower()}": (
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
    )
    for table in _TABLES
    for verb in ("UPDATE", "DELETE")
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: ``kind`` is register, extend or finish; ``event`` is None for finish, and uses no mechanisms."""

    number: int
    kind: str
    run: str
    part: int
    event: dp_accounting.DpEvent | None
    mechanisms: Mapping[Mechanism, int]
    fingerprint: str
    hash: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """All that a ledger holds, checked: its budget and its entries in order; ``head`` is the last hash."""

    dataset: str
    epsilon: float
    delta: float
    entries: tuple[Entry, ...]
    head: str


class LedgerFile:
    """One file; every operation has a connection of its own, so that threads and forks need no care."""

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"Cannot read ledger {self.path}: no such file; make one with 'ledger create'.")
        with self._connection() as connection:
            self._expect(connection, "PRAGMA integrity_check", [("ok",)])
        self.read()

    @classmethod
    def create(cls, path, dataset: str, epsilon: float, delta: float) -> LedgerFile:
        """Make the file, mode 0600, whole or not at all; never over one that is there."""
        with files.replaced_atomically(path, mode=0o600, overwrite=False) as partial:
            connection = sqlite3.connect(partial, isolation_level=None)
            try:
                connection.execute("BEGIN")
                for statement in _SCHEMA.values():
                    connection.execute(statement)
                budget = (dataset, epsilon, delta)
                connection.execute("INSERT INTO budget VALUES (0, ?, ?, ?, ?)", (*budget, _link("", *budget)))
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute("COMMIT")
            finally:
                connection.close()
        return cls(path)

    def read(self) -> Rows:
        """Everything, as it was at one moment.

        Raises:
            InputError: if it is no ledger, damaged, or edited by something else.
        """
        with self._connection() as connection:
            connection.execute("BEGIN")
            return self._verified(connection)

    @contextlib.contextmanager
    def writing(self):
        """Yield (rows, append) with the write lock held; what was appended is on disk when the block ends."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = self._verified(connection)

            def append(kind: str, run: str, part: int, event: str, fingerprint: str) -> None:
                number = len(rows.entries) + 1
                row = (number, kind, run, part, event, fingerprint)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, _link(rows.head, *row)))
                # In the same transaction: shows if the last rows are cut off, which a chain alone does not.
                connection.execute(f"PRAGMA user_version = {number}")

            yield rows, append
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _connection(self):
        """A connection; all that SQLite reports becomes one line."""
        connection = None
        try:
            connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=rw", uri=True, timeout=_PATIENCE, isolation_level=None
            )
            connection.execute("PRAGMA trusted_schema = OFF")
            # EXTRA also syncs the folder, so that a committed row outlives a power cut.
            connection.execute("PRAGMA synchronous = EXTRA")
            yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"Cannot use ledger {self.path}: {error}; if it is damaged, restore it from a copy and register what "
                "was run since."
            ) from error
        finally:
            if connection is not None:
                connection.close()

    def _expect(self, connection, statement, expected):
        if connection.execute(statement).fetchall() != expected:
            what = statement.removeprefix("PRAGMA ").split(" FROM ")[-1].split(" WHERE ")[0]
            raise InputError(
                f"{self.path} is no ledger, or was damaged or edited ({what} differs); restore it from a copy."
            )

    def _verified(self, connection) -> Rows:
        """Everything, with the schema, the chain of hashes and the number of rows checked."""
        self._expect(connection, "PRAGMA application_id", [(_APPLICATION_ID,)])
        schema = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        self._expect(connection, schema, sorted(_SCHEMA.items()))
        budgets = connection.execute("SELECT dataset, epsilon, delta, hash FROM budget").fetchall()
        known = connection.execute("SELECT * FROM entries ORDER BY number").fetchall()
        try:
            ((dataset, epsilon, delta, genesis),) = budgets
            head, whole = (
                _link("", dataset, epsilon, delta),
                [row[0] for row in known] == list(range(1, len(known) + 1)),
            )
            whole &= head == genesis
            for row in known:
                head = _link(head, *row[:-1])
                whole &= head == row[-1]
            entries = tuple(Entry(*row[:4], *(_read(row[4]) if row[4] else (None, {})), *row[5:]) for row in known)
        except (TypeError, ValueError) as error:
            raise InputError(f"Ledger {self.path} was edited: {error}; restore it from a copy.") from error
        if not whole:
            raise InputError(f"Ledger {self.path} was edited: its hashes do not fit; restore it from a copy.")
        self._expect(connection, "PRAGMA user_version", [(len(known),)])
        return Rows(dataset, epsilon, delta, entries, head)


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> tuple[dp_accounting.DpEvent, Mapping[Mechanism, int]]:
    """An event and how often it uses each mechanism; kept, as the parts of a run are alike."""
    event = events.loads(text)
    return event, types.MappingProxyType(events.mechanisms(event))


def _link(previous: str, *fields) -> str:
    """The hash of a row, which holds that of the row before."""
    return hashlib.sha256(json.dumps([previous, *fields]).encode()).hexdigest()
