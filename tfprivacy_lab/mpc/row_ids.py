"""Whether what parties hold belongs together: rows in the same order, shares of the same run.

Nothing else would notice: a model trained on rows that do not match is a useless model, and what is opened from shares
that do not match is garbage, both without an error. So each who holds columns, or labels, of the same rows may give the
ids of its rows (``ids``, and ``query_ids`` of a query), and what the parties compare is a digest of them, under a key
that is made for every connection: it cannot be recognised in another run, nor looked up in a table. Shares name their
run themselves. Not covered: a party who guesses the whole list of ids, in its order, can confirm the guess.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc import share_headers
from tfprivacy_lab.mpc.jobs import Job

TRAINING, QUERY, SHARES = "training rows", "query rows", "shares of the weights"


def of_party(job: Job, me: str, data: dict[str, np.ndarray]) -> dict[str, bytes | None]:
    """The ids of the rows that this party holds and others hold too, as bytes; None where it gives none.

    Raises:
        InputError: if there are ids, but not one for each row.
    """
    found = {}
    if me in _holders_of_training_rows(job):
        found[TRAINING] = _bytes("ids", data.get("ids"), job.rows)
    if len(job.query) > 1 and me in job.query:
        found[QUERY] = _bytes("query_ids", data.get("query_ids"), job.query[me][0])
    if job.layers and job.initial == "shares":
        found[SHARES] = share_headers.parsed("kernel_0", data.get("kernel_0"))[0].run.encode()
    return found


def compare(job: Job, data: dict[str, dict[str, np.ndarray]]) -> None:
    """What parties do when they meet, for a simulation, which has everyone's ids.

    Raises:
        InputError: naming two parties whose ids differ, or who has none.
    """
    first: dict[str, tuple[str, bytes | None]] = {}
    for name in job.world.parties:
        for what, ids in of_party(job, name, data.get(name, {})).items():
            other, theirs = first.setdefault(what, (name, ids))
            complaint = difference(what, name, ids, other, theirs)
            if complaint:
                raise InputError(complaint)


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


def _holders_of_training_rows(job: Job) -> set[str]:
    """Who holds a part of every row: none where rows are split, or one party has all."""
    holders = {*job.features, *job.labels}
    return holders if job.training is not None and job.split == "columns" and len(holders) > 1 else set()


def _bytes(name: str, ids, rows: int) -> bytes | None:
    if ids is None:
        return None
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iuUS" or ids.shape != (rows,):
        raise InputError(f"Expected {name} to hold {rows} texts or whole numbers, got {ids.dtype} {ids.shape}.")
    texts = [one if isinstance(one, bytes) else str(one).encode() for one in ids.tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
