"""Batch scoring: a folder of queries to a folder of replies, on one machine or on a Dask cluster.

Every reply is written once: beside its place, synced, then linked there, which fails if it is there already. So
a worker may be killed at any moment, its query is given to another, and two that score the same query leave one
reply. A run that was interrupted goes on: a reply that is there and answers its query is not made again.

The folder of replies belongs to one head: ``HEAD_FILE`` in it holds the head's digest.

Not covered: Dask's workers and scheduler unpickle what they are sent, and run it. The cluster must be yours, in
a network of yours or under Dask's own TLS. What is sent here are file names and a digest; queries, replies and
the head go through the folder that all workers share.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import socket
from pathlib import Path

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice, check_positive_int
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.quantization.heads import check_head
from tfprivacy_lab.he.ring.parameters import MAX_MESSAGE_BYTES
from tfprivacy_lab.he.server.head import REPLIES, Server

HEAD_FILE = "head.json"
SUFFIX = ".reply"
_CONNECT_SECONDS = 20
_SHOWN = 5
_LONGEST_NAME = 255


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the queries.

    Args:
        scored: Replies written by this run.
        finished: Replies that were there before.
        failures: Names of queries without a reply, and why.
    """

    scored: int
    finished: int
    failures: dict[str, str]

    def check(self) -> None:
        """Refuse an outcome with failures, naming them."""
        if self.failures:
            total = self.scored + self.finished + len(self.failures)
            named = "; ".join(f"{_shown(name)}: {reason}" for name, reason in list(self.failures.items())[:_SHOWN])
            more = f"; and {len(self.failures) - _SHOWN} more" if len(self.failures) > _SHOWN else ""
            raise InputError(
                f"{len(self.failures)} of {total} queries were not scored, the others were: {named}{more}. "
                "Mend or remove these and run it again."
            )


def score(
    head, queries, out, *, jobs: int = 0, cluster: str | None = None, replies: str = "sanitized", on_progress=None
) -> Outcome:
    """Answer many queries, each in a file.

    Args:
        head: ``.npz`` file with kernel (d, c) and bias (c,).
        queries: A folder (its files; hidden ones and folders in it are passed over), or a list of files. Regular files
            only: a pipe, a device or a link is a failure of its own.
        out: Folder of replies, ``NAME.reply`` each; new, empty, or of an earlier run with this head.
        jobs: Processes on this machine; 0 takes one a processor. Not with a cluster.
        cluster: Address of a Dask scheduler, ``tcp://HOST:PORT``; its workers see the same files.
        replies: "sanitized" refuses queries whose replies would give the head away; "any" answers them too.
        on_progress: Called with a line of text now and then.

    Returns:
        The outcome; a query that cannot be answered is among its failures and stops no other.

    Raises:
        InputError: naming the head, the folder or the cluster, before anything is scored; or if the
            workers die.
    """
    check_positive_int("jobs", jobs, at_least=0)
    check_choice("replies", replies, REPLIES)
    head = Path(head).absolute()
    digest = _head_digest(head)
    queries = _query_files(queries)
    out = Path(out).absolute()
    places = {query: out / (query.name + SUFFIX) for query in queries}
    with _owned_folder(out, digest, places.values()):
        waiting, failures = [], {query.name: reason for query in places if (reason := _too_long(query.name))}
        for query, reply in places.items():
            if query.name in failures:
                continue
            if os.path.lexists(reply):
                if not _answers(reply, query):
                    failures[query.name] = f"{_shown(str(reply))} is there and does not answer it; it is left as it is"
            else:
                waiting.append((str(head), digest, str(query), str(reply), replies))
        finished = len(places) - len(waiting) - len(failures)
        run = functools.partial(_run_local, jobs) if cluster is None else functools.partial(_run_cluster, cluster)
        results = run(waiting, on_progress) if waiting else []
        failures |= {name: reason for name, reason in results if reason}
    return Outcome(len(waiting) - sum(1 for _, reason in results if reason), finished, failures)


def score_one(head: str, digest: str, query: str, reply: str, replies: str = "sanitized") -> tuple[str, str]:
    """Answer one query, in a worker: ``(name, "")``, or the name and what is wrong with it.

    Args:
        head: The head's file.
        digest: What it must hold.
        query: The query's file.
        reply: Where the reply goes.
        replies: Which are given, as in :func:`score`.
    """
    name = Path(query).name
    try:
        answer = _server(head, digest, replies).evaluate(_read(query, "query"), _shown(name))
        try:
            files.write_bytes(reply, answer, overwrite=False)
        except InputError:
            # A worker that was given up for dead, or an earlier try of this one, was here first.
            if not _answers(Path(reply), Path(query)):
                raise
    except (InputError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        return name, f"{reason.rstrip('.')} (on {socket.gethostname()})"
    return name, ""


def _too_long(name: str) -> str:
    """Why no reply can have the name that belongs to this query's, or nothing."""
    over = len(os.fsencode(name + SUFFIX)) - _LONGEST_NAME
    return f"its name leaves no room for {SUFFIX!r}: shorten it by {over} bytes" if over > 0 else ""


@functools.lru_cache(maxsize=2)
def _server(head: str, digest: str, replies: str) -> Server:
    """One server a process and head, so that a head is read and quantised once."""
    if _head_digest(head) != digest:
        raise InputError(f"Expected {head} to be the head that scoring began with, got another.")
    arrays = files.read_arrays(head, "head", ("kernel", "bias"))
    return Server(arrays["kernel"], arrays["bias"], replies)


def _read(path, what: str) -> bytes:
    """A message's file: regular, and no larger than a message can be."""
    return files.read_regular(path, what, MAX_MESSAGE_BYTES + wire.HEADER_BYTES + wire.DIGEST_BYTES + 2**20)


def _shown(name: str) -> str:
    """A file's name, whatever its bytes, fit for a line."""
    name = name.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in name)


def _head_digest(path) -> str:
    """SHA-256 of a checked head's numbers and shape."""
    arrays = files.read_arrays(path, "head", ("kernel", "bias"))
    kernel, bias = check_head(arrays["kernel"], arrays["bias"])
    digest = hashlib.sha256(np.array(kernel.shape, "<i8").tobytes())
    for array in (kernel, bias):
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    return digest.hexdigest()


def _query_files(queries) -> list[Path]:
    """The files of a folder or list, absolute and sorted, no two of one name."""
    given = [queries] if isinstance(queries, str | os.PathLike) else list(queries)
    found = []
    for path in map(Path, given):
        if path.is_dir():
            try:
                inside = [entry for entry in path.iterdir() if not entry.name.startswith(".") and not entry.is_dir()]
            except OSError as error:
                raise InputError(f"Cannot read folder of queries {path}: {error.strerror or error}.") from error
            found += inside
        elif len(given) == 1 and not os.path.lexists(path):
            raise InputError(f"Cannot read queries {path}: no such file or folder.")
        else:
            found.append(path)
    if not found:
        raise InputError(f"Expected queries in {', '.join(map(str, given))}, got no file.")
    found = sorted(path.absolute() for path in found)
    name, times = collections.Counter(path.name for path in found).most_common(1)[0]
    if times > 1:
        raise InputError(f"Expected queries of different names, got {name!r} {times} times; score them apart.")
    return found


@contextlib.contextmanager
def _owned_folder(out: Path, digest: str, places):
    """The folder of replies, kept from other runs; leftovers of killed workers are removed at the end."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"Cannot write replies into {out}: {error.strerror or error}; name a folder.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Expected {out} to itself, got another run that writes there; wait for it.") from None
        except OSError:
            pass  # a file system without locks: replies are still written once
        _check_owner(out, {"head": digest})
        yield
        for place in places:
            for partial in out.glob(f".{_escaped(files.partial_stem(place))}.*.partial{SUFFIX}"):
                partial.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _check_owner(out: Path, expected: dict) -> None:
    """The folder is empty, and marked now, or of an earlier run with this head."""
    present = {entry.name for entry in out.iterdir()}
    if HEAD_FILE in present:
        if files.read_json(out / HEAD_FILE, "digest of the head") != expected:
            raise InputError(f"Expected {out} to hold replies of this head, got another's; name another folder.")
    elif present:
        raise InputError(
            f"Expected {out} to be empty, or of an earlier run, got {min(present)!r}; name another folder."
        )
    else:
        files.write_json(out / HEAD_FILE, expected, mode=0o600)


def _escaped(name: str) -> str:
    """A name as a pattern of itself."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _answers(reply: Path, query: Path) -> bool:
    """Whether a file is a whole reply to this query."""
    try:
        sent, _ = wire.parse(_read(query, "query"), wire.QUERY, "query")
        got, _ = wire.parse(_read(reply, "reply"), wire.REPLY, "reply")
    except InputError:
        return False
    return (sent.key_id, sent.query_id, sent.samples) == (got.key_id, got.query_id, got.samples)


def _run_local(jobs: int, waiting, on_progress) -> list[tuple[str, str]]:
    """Through joblib's processes on this machine."""
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        with joblib.parallel_config(backend="loky", n_jobs=jobs or -1):
            return _parallel(waiting, on_progress)
    except TerminatedWorkerError as error:
        raise InputError(
            "A process that scored was killed (out of memory?); what is finished is kept: run it again, "
            "with fewer jobs if memory is short."
        ) from error


def _run_cluster(address: str, waiting, on_progress) -> list[tuple[str, str]]:
    """Through joblib's Dask backend, on the workers of a scheduler."""
    if not address.startswith(("tcp://", "tls://")):
        raise InputError(f"Expected cluster to be the address of a Dask scheduler, tcp://HOST:PORT, got {address!r}.")
    import distributed
    import joblib

    class Client(distributed.Client):
        """Leaves nothing behind where it cannot connect: collected later, it could block another one's start."""

        def start(self, **options):
            try:
                super().start(**options)
            except BaseException:
                self.close()
                self._loop_runner.stop()
                raise

    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"Cannot reach cluster {address}: {str(error) or 'no answer'}; is a scheduler there?"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            with joblib.parallel_config(backend="dask", client=client, pure=False):
                return _parallel(waiting, on_progress)
        except TimeoutError as error:
            raise InputError(f"Cluster {address} has no worker; start one with 'dask worker {address}'.") from error
        except (concurrent.futures.CancelledError, OSError) as error:
            raise InputError(
                f"Lost the scheduler of {address} while scoring; what is finished is kept: run it again."
            ) from error
        except distributed.KilledWorker as error:
            raise InputError(
                f"A query killed worker after worker of {address} (out of memory?): {error}; what is finished is "
                "kept: run it again with more memory a worker."
            ) from error


def _parallel(waiting, on_progress) -> list[tuple[str, str]]:
    """All tasks, one query each, so that a killed worker loses one query's time."""
    import joblib

    class Progress(joblib.Parallel):
        def print_progress(self):
            if on_progress is not None:
                on_progress(f"{self.n_completed_tasks} of {len(waiting)} queries")

    return Progress(batch_size=1)(joblib.delayed(score_one)(*task) for task in waiting)
