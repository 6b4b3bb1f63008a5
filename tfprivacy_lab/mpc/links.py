"""How parties find each other and notice that one is gone: a connection between any two, which carries everything.

Before the engine starts, each tells the other who it is, which job it runs, what it compiled and whose rows it holds;
whatever differs ends the run there, with a line that names the difference. Afterwards the connection carries the
engine's bytes (:mod:`tfprivacy_lab.mpc.relay`) and a heartbeat: a process that dies closes it at once, one that hangs
falls silent, one that gives up says why. The engine, which would wait for long for a message that never comes, is then
left to itself.

With credentials the connection is TLS 1.3, both sides show certificates, and the name in the certificate must be the
name of the party. Without, anyone who reaches the port can pretend to be a party: loopback only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import queue
import secrets
import threading
import time

from tfprivacy_lab.mpc import entrance, row_ids
from tfprivacy_lab.mpc.certificates import LoadedCredentials
from tfprivacy_lab.mpc.entrance import Entrance
from tfprivacy_lab.mpc.jobs import difference
from tfprivacy_lab.mpc.peers import CONTROL, MAGIC, GoneError, PartyError, Peer
from tfprivacy_lab.mpc.relay import Relay

__all__ = ["MAGIC", "Control", "PartyError"]

_BEAT_SECONDS, _SILENCE_SECONDS, _GRACE_SECONDS = 1.0, 8.0, 4.0
# A job with its public weights, over a slow line.
_JOB_SECONDS = 60.0
# A party that refuses its own data is ready long before the others have compiled.
_TELLING_SECONDS = 30.0
_ATTEMPTS, _SHORT = 5, 300


class Control:
    """All of a party's connections to the others.

    Args:
        me: This party's name.
        ranks: All names, in the order that everyone knows: each calls those before it and answers those after.
        addresses: Name to (host, port), where it is reached.
        credentials: For TLS, or None.
        listen: (host, port) to bind, if not the address at which this party is reached.
        relay: Carries the engine's bytes; None if there is no engine.
    """

    def __init__(
        self,
        me: str,
        ranks,
        addresses: dict[str, tuple[str, int]],
        credentials: LoadedCredentials | None,
        *,
        listen: tuple[str, int] | None = None,
        relay: Relay | None = None,
    ):
        self.me, self.credentials, self._addresses = me, credentials, addresses
        self._listen = listen or addresses[me]
        rank = ranks.index(me)
        self._before, self._after = tuple(ranks[:rank]), tuple(ranks[rank + 1 :])
        self._relay = relay
        self.peers: dict[str, Peer] = {}
        self.failure: PartyError | None = None
        self.failed, self._closing = threading.Event(), threading.Event()
        self._met: queue.Queue = queue.Queue()
        self._finished: queue.Queue = queue.Queue()
        self._taken: set[str] = set()
        # Each party's part in the name of the run.
        self._parts = {me: secrets.token_hex(32)}
        self._lock = threading.Lock()

    def join(
        self,
        job: dict,
        code: str,
        seconds: float,
        *,
        refusal: str | None = None,
        rows: dict[str, bytes | None] | None = None,
    ) -> None:
        """Meet all others.

        Args:
            job: This party's job; every other's must be equal.
            code: Digest of the programs it compiled.
            seconds: How long to wait for the others; strangers do not shorten it.
            refusal: Why this party will not compute; the others are told instead.
            rows: What rows this party holds that others may hold too, to their ids as bytes, or to None without ids.
                Others must say the same; they are told a digest, under a key made for each connection.

        Raises:
            PartyError: naming who is missing or what differs.
        """
        self._job, self._code, self._refusal, self._rows = job, code, refusal, rows or {}
        self._digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        self._end = time.monotonic() + (min(seconds, _TELLING_SECONDS) if refusal else seconds)
        with contextlib.closing(Entrance(self._listen, self.credentials, self._welcome)) as door:
            for name in self._before:
                threading.Thread(target=self._call, args=(name,), daemon=True).start()
            first = self._wait_for_all(door)
        if first is not None or refusal:
            self.give_up(refusal or str(first))
            raise first or PartyError(refusal)
        if self._relay is not None:
            self._relay.start(self.peers)
        for peer in self.peers.values():
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()
            threading.Thread(target=self._beat, args=(peer,), daemon=True).start()

    @property
    def run(self) -> str:
        """A name of this run that all who met share, and no other run has."""
        return hashlib.sha256(json.dumps([self._digest, sorted(self._parts.items())]).encode()).hexdigest()

    def finish(self, seconds: float = 30.0) -> None:
        """Tell the others that this party has all it needs, and wait until they have.

        Raises:
            PartyError: if one of them failed meanwhile.
        """
        self._tell(type="done")
        waiting, deadline = len(self.peers), time.monotonic() + seconds
        while waiting and not self.failed.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._finished.get(timeout=0.05)
                waiting -= 1
        if self.failure is not None:
            raise self.failure
        self.close()

    def give_up(self, reason: str) -> None:
        """Tell the others that this party ends, and why; best effort."""
        self._tell(type="failed", reason=reason[:_SHORT])
        self.close()

    def close(self) -> None:
        """Close all connections; what they say from now on is no failure."""
        self._closing.set()
        if self._relay is not None:
            self._relay.stop()
        for peer in self.peers.values():
            peer.close()

    def _tell(self, **message) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.send(**message)

    def _wait_for_all(self, door: Entrance) -> PartyError | None:
        """Collect who was met; the first failure, after the rest have had the time to hear of it."""
        waiting, first = {*self._before, *self._after}, None
        while waiting:
            try:
                name, met = self._met.get(timeout=max(0.01, self._end - time.monotonic()))
            except queue.Empty:
                if self._end - time.monotonic() > 0:
                    continue
                return first or PartyError(self._missing(waiting, door))
            waiting.discard(name)
            if isinstance(met, Peer):
                self.peers[name] = met
            elif first is None:
                # The rest must hear of it too, rather than wait for a party that has left.
                first, self._refusal = met, self._refusal or str(met)
                self._end = min(self._end, time.monotonic() + _GRACE_SECONDS)
        return first

    def _missing(self, waiting: set[str], door: Entrance) -> str:
        missing = [name for name in (*self._before, *self._after) if name in waiting]
        line = f"{' and '.join(missing)} did not come in time"
        if door.strangers:
            line += f"; {door.strangers} others came and were sent away, the last because {door.last_stranger}"
        return line + "."

    def _call(self, name: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                peer = entrance.call(name, self._addresses[name], self.credentials, lambda: self._end)
                theirs = entrance.hello_of(peer, self._hello(nonce := secrets.token_hex(32)))
                if theirs.get("me") != name:
                    raise PartyError(f"{name} says it is {str(theirs.get('me'))[:40]!r}.")
                entrance.certified(peer, name)
            except PartyError as error:
                # An entrance full of strangers may close whoever came first.
                if isinstance(error, GoneError) and attempt < _ATTEMPTS - 1 and not self._closing.wait(0.2):
                    continue
                self._met.put((name, error))
                return
            self._agree(peer, name, nonce, theirs)
            return

    def _welcome(self, peer: Peer):
        """Hear someone who called; a stranger is told why it is sent away, if it listens."""
        theirs = entrance.hello_of(peer, self._hello(nonce := secrets.token_hex(32)))
        name = theirs.get("me")
        try:
            if name not in self._after:
                raise PartyError(f"{peer.name} says it is {str(name)[:40]!r}, expected was {' or '.join(self._after)}.")
            entrance.certified(peer, name)
        except PartyError as error:
            with contextlib.suppress(PartyError):
                entrance.tell(peer, refused=str(error))
            raise
        return lambda: self._agree_once(peer, name, nonce, theirs)

    def _agree_once(self, peer: Peer, name: str, nonce: str, theirs: dict) -> None:
        """A second caller with the name of one who is here is sent away."""
        with self._lock:
            first = name not in self._taken
            self._taken.add(name)
        if first:
            self._agree(peer, name, nonce, theirs)
            return
        with contextlib.suppress(PartyError):
            entrance.tell(peer, refused=f"{name} is here already")
        peer.close()

    def _hello(self, nonce: str) -> dict:
        refusal = self._refusal and self._refusal[:_SHORT]
        hello = {"me": self.me, "digest": self._digest, "code": self._code, "nonce": nonce, "refusal": refusal}
        return {**hello, "run": self._parts[self.me]}

    def _agree(self, peer: Peer, name: str, nonce: str, theirs: dict) -> None:
        """Compare what both are about to do; the result is what :meth:`join` waits for."""
        peer.name = name
        try:
            # What either has said already decides; both ends see the same, and take the same way.
            if theirs.get("digest") != self._digest:
                raise PartyError(f"{name} runs another job: {self._difference(peer)}.")
            if theirs.get("refusal"):
                raise PartyError(f"{name} gave up: {str(theirs['refusal'])[:_SHORT]}")
            if theirs.get("code") != self._code and not self._refusal:
                raise PartyError(f"{name} compiled other programs from the same job; do versions differ?")
            self._compare_rows(peer, "".join(sorted([nonce, str(theirs.get("nonce"))])).encode())
        except PartyError as error:
            peer.close()
            self._met.put((name, error))
            return
        self._parts[name] = str(theirs.get("run"))[:64]
        self._met.put((name, peer))

    def _difference(self, peer: Peer) -> str:
        """The first field in which a peer's job differs; both send theirs while they read the other's."""
        sending = threading.Thread(target=self._send_job, args=(peer,), daemon=True)
        sending.start()
        theirs = entrance.hear(peer, _JOB_SECONDS).get("job")
        sending.join(_JOB_SECONDS)
        found = difference(self._job, theirs) if isinstance(theirs, dict) else None
        return found or "its digest is of another"

    def _send_job(self, peer: Peer) -> None:
        with contextlib.suppress(PartyError):
            entrance.tell(peer, job=self._job)

    def _compare_rows(self, peer: Peer, key: bytes) -> None:
        mine = {
            what: ids if ids is None else hmac.new(key, ids, hashlib.sha256).hexdigest()
            for what, ids in self._rows.items()
        }
        entrance.tell(peer, rows=mine)
        theirs = entrance.hear(peer, _JOB_SECONDS).get("rows")
        if not isinstance(theirs, dict):
            raise PartyError(f"{peer.name} does not speak {MAGIC}.")
        for what in sorted(mine.keys() & theirs.keys()):
            complaint = row_ids.difference(what, self.me, mine[what], peer.name, theirs[what])
            if complaint:
                raise PartyError(complaint)

    def _watch(self, peer: Peer) -> None:
        """Read what a peer says, and hand the engine's bytes on, until it fails or all have finished."""
        finished = False
        while not self._closing.is_set():
            try:
                kind, channel, body = peer.receive_frame(_SILENCE_SECONDS)
                if kind != CONTROL:
                    if self._relay is not None:
                        self._relay.take(peer, kind, channel, body)
                    continue
                message = peer.parse(body)
                if message.get("type") == "failed":
                    raise PartyError(f"{peer.name} gave up: {str(message.get('reason'))[:_SHORT]}")
                if message.get("type") == "done" and not finished:
                    finished = True
                    self._finished.put(peer.name)
            except PartyError as error:
                # Who has finished may leave.
                if not self._closing.is_set() and not finished:
                    self.failure = self.failure or error
                    self.failed.set()
                return

    def _beat(self, peer: Peer) -> None:
        while not self._closing.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                peer.send(type="beat")
