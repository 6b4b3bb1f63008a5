"""Whether what parties hold belongs together: rows in the same order, shares of the same run.

Nothing else would notice: a model trained on rows that do not match is a useless model, and what is opened from shares
that do not match is garbage, both without an error. So each who holds columns, or labels, of the same rows may give the
ids of its rows (``ids``, and ``query_ids`` of a query), and what the parties compare is a digest of them, under a key
that is made for every connection: it cannot be recognised in another run, nor looked up in a table. Shares name their
run themselves. Not covered: a party who guesses the whole list of ids, in its order, can confirm the guess.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from tfprivacy_lab.checks import InputError, RowOrderWarning, check_array
from tfprivacy_lab.mpc.jobs import share_headers
from tfprivacy_lab.mpc.jobs.job import Job

TRAINING, QUERY, SHARES = "training rows", "query rows", "shares of the weights"


def of_party(job: Job, me: str, data: dict[str, np.ndarray]) -> dict[str, bytes | None]:
    """The ids of the rows that this party holds and others hold too, as bytes; None where it gives none.

    Raises:
        InputError: if there are ids, but not one for each row.
    """
    found = {}
    if me in holders_of_training_rows(job):
        found[TRAINING] = _bytes("ids", data.get("ids"), job.rows)
    if len(job.query) > 1 and me in job.query:
        found[QUERY] = _bytes("query_ids", data.get("query_ids"), job.query[me][0])
    if job.layers and job.initial == "shares":
        found[SHARES] = share_headers.parsed("kernel_0", data.get("kernel_0"))[0].run.encode()
    return found


def compare(job: Job, data: dict[str, dict[str, np.ndarray]]) -> None:
    """What parties do when they meet, for whoever starts them all and has everyone's ids; warns if there are none.

    Raises:
        InputError: naming two parties whose ids differ, or who has none, or what is nobody's.
    """
    check_given(job, data)
    first: dict[str, tuple[str, bytes | None]] = {}
    for name in job.world.parties:
        for what, ids in of_party(job, name, data.get(name, {})).items():
            other, theirs = first.setdefault(what, (name, ids))
            complaint = difference(what, name, ids, other, theirs)
            if complaint:
                raise InputError(complaint)
    without = [what for what, (_, ids) in first.items() if ids is None]
    if without:
        warnings.warn(
            f"Order of rows not compared: no ids of the {' and '.join(without)}. If parties hold them in different "
            "orders the result is useless; give ids (query_ids) to have them compared.",
            RowOrderWarning,
            stacklevel=3,
        )


def check_given(job: Job, data) -> None:
    """Refuse data that is not a mapping from parties to their arrays by name.

    Raises:
        InputError: naming the party.
    """
    for name, arrays in of_parties("data", data, job.world.parties).items():
        if not isinstance(arrays, Mapping):
            raise InputError(f"Expected data of {name} to map names to arrays, got a {type(arrays).__name__}.")


def of_parties(argument: str, given, parties) -> dict:
    """``given`` if it maps some of these parties to something.

    Raises:
        InputError: naming the argument.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"Expected {argument} to map parties to what they have, got a {type(given).__name__}.")
    for name, value in given.items():
        if name not in parties:
            raise InputError(f"Expected {argument} of parties ({', '.join(parties) or 'none'}), got {name!r:.80}.")
        if value is None:
            raise InputError(f"Expected {argument} to map {name} to what it has, got None.")
    return dict(given)


def difference(what: str, me: str, mine, other: str, theirs) -> str | None:
    """The line that says how two parties' ids, or digests of them, differ; None if they do not."""
    if (mine is None) != (theirs is None):
        without = me if mine is None else other
        return f"Expected ids of the {what} from all who hold them, or from none; {without} has none."
    if mine != theirs and what == SHARES:
        return f"{other} holds {what} of another run than {me}: take those that one run left, of every party."
    if mine != theirs:
        return (
            f"{other} holds {what} of other ids, or in another order, than {me}: keep those that both have, and sort "
            "them by id."
        )
    return None


def holders_of_training_rows(job: Job) -> tuple[str, ...]:
    """Who holds a part of every row: none where rows are split, or one party has all."""
    holders = tuple(dict.fromkeys((*job.features, *job.labels)))
    return holders if job.training is not None and job.split == "columns" and len(holders) > 1 else ()


def _bytes(name: str, ids, rows: int) -> bytes | None:
    if ids is None:
        return None
    ids = check_array(name, ids)
    if ids.dtype.kind not in "iuUS" or ids.shape != (rows,):
        raise InputError(f"Expected {name} to hold {rows} texts or whole numbers, got {ids.dtype} {ids.shape}.")
    try:
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in ids.tolist()]
    except UnicodeEncodeError as error:
        raise InputError(f"Expected {name} to be texts of whole characters, got half of a surrogate pair.") from error
    if len(set(texts)) != rows:
        raise InputError(
            f"Expected {name} to be different for each row, got {len(set(texts))} different of {rows}: rows of the "
            "same id could stand in any order."
        )
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
