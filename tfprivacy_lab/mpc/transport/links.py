"""How parties find each other and notice that one is gone: a connection between any two, which carries everything.

Before the engine starts, each tells the other who it is, which job it runs, what it compiled and whose rows it holds;
whatever differs ends the run there, with a line that names the difference. From then on the connection carries a
heartbeat: a process that dies closes it at once, one that hangs falls silent, one that gives up says why. While parties
gather, one that is lost may come again; when each knows that all have met all, the connections carry the engine's bytes
too (:mod:`tfprivacy_lab.mpc.transport.relay`). The engine would wait for long for a party that fails, and is left to
itself then.

With credentials the connection is TLS 1.3, both sides show certificates, and the name in the certificate must be the
name of the party. Without, anyone who reaches the port can pretend to be a party: loopback only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import secrets
import threading
import time

from tfprivacy_lab.mpc.transport import entrance
from tfprivacy_lab.mpc.transport.certificates import LoadedCredentials
from tfprivacy_lab.mpc.transport.entrance import Entrance
from tfprivacy_lab.mpc.transport.peers import CONTROL, SHORT, GoneError, PartyError, Peer, as_party_error
from tfprivacy_lab.mpc.transport.relay import Relay

_BEAT_SECONDS, _SILENCE_SECONDS, _GRACE_SECONDS = 1.0, 8.0, 4.0
# A party that refuses its own data is ready long before the others have compiled.
_TELLING_SECONDS = 30.0
# For a line to those who may take none any more.
_LAST_WORD_SECONDS = 5.0
_ATTEMPTS = 5


class Control:
    """All of a party's connections to the others.

    Args:
        me: This party's name.
        ranks: All names, in the order that everyone knows: each calls those before it and answers those after.
        addresses: Name to (host, port), where it is reached.
        credentials: For TLS, or None.
        listen: (host, port) to bind, if not the address at which this party is reached.
        relay: Carries the engine's bytes; None if there is no engine.

    Attributes:
        run_id: Of this meeting: hexadecimal, made of a random number of each party, the same at all once they have met.
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
        self._others = (*self._before, *self._after)
        self._relay, self.run_id = relay, ""
        self.peers: dict[str, Peer] = {}
        self.failure: PartyError | None = None
        self.failed, self._closing, self._joined = threading.Event(), threading.Event(), threading.Event()
        # What threads notice while this party gathers, for the one that gathers: (name, what); and who has finished.
        self._noticed, self._finished = queue.Queue(), queue.Queue()
        self._numbers, self._ready = {me: secrets.token_hex(32)}, {}
        self._taken: set[str] = set()
        self._lost: dict[str, str] = {}
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
                _start(self._call, name)
            first = self._gather(door)
        if first is not None or refusal:
            self.give_up(refusal or str(first))
            raise PartyError(refusal) if refusal else first
        if self._relay is not None:
            self._relay.start(self.peers)

    def finish(self, seconds: float = 30.0) -> None:
        """Tell the others that this party has all it needs, and wait until they have.

        Raises:
            PartyError: if one of them failed meanwhile.
        """
        self._tell(seconds, type="done")
        waiting, deadline = len(self.peers), time.monotonic() + seconds
        while waiting and not self.failed.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._finished.get(timeout=0.05)
                waiting -= 1
        if self.failure is not None:
            self.give_up(str(self.failure))
            raise self.failure
        self.close()

    def give_up(self, reason: str) -> None:
        """Tell the others that this party ends, and why; best effort."""
        self._tell(_LAST_WORD_SECONDS, type="failed", reason=reason[:SHORT])
        self.close()

    def close(self) -> None:
        """Close all connections; what they say from now on is no failure."""
        self._closing.set()
        if self._relay is not None:
            self._relay.stop()
        for peer in self.peers.values():
            peer.close()

    def _tell(self, seconds: float, **message) -> None:
        """A message to all, to each beside the others; who takes it slowly is waited for ``seconds`` at most."""

        def send(peer: Peer) -> None:
            with contextlib.suppress(OSError):
                peer.send(**message)

        sending, end = [_start(send, peer) for peer in self.peers.values()], time.monotonic() + seconds
        for one in sending:
            one.join(max(0.0, end - time.monotonic()))

    def _gather(self, door: Entrance) -> PartyError | None:
        """Wait until all have met all; the first failure, after the rest have had the time to hear of it."""
        waiting, first, told = {*self._others}, None, None
        while waiting or (first is None and not self._all_ready()):
            if not waiting and first is None and told != self.run_id:
                told = self.run_id
                self._tell(_LAST_WORD_SECONDS, type="ready", run_id=told)
            if (left := self._end - time.monotonic()) <= 0:
                return first or PartyError(self._missing(waiting, door))
            try:
                name, what = self._noticed.get(timeout=left)
            except queue.Empty:
                continue
            if isinstance(what, GoneError) and first is None and not self._refusal:
                self._await_again(name, what)
                waiting.add(name)
                told = None
            elif isinstance(what, Peer):
                self._meet(name, what)
                waiting.discard(name)
            elif isinstance(what, PartyError):
                waiting.discard(name)
                if first is None and not self._refusal:
                    # The rest must hear of it too, rather than wait for a party that has left.
                    self._end = min(self._end, time.monotonic() + _GRACE_SECONDS)
                first, self._refusal = first or what, self._refusal or str(what)
        return first

    def _meet(self, name: str, peer: Peer) -> None:
        self.peers[name] = peer
        numbers = json.dumps(sorted(self._numbers.items()))
        self.run_id = hashlib.sha256(numbers.encode()).hexdigest()
        _start(self._watch, peer)
        _start(self._beat, peer)

    def _await_again(self, name: str, lost: PartyError) -> None:
        """A party whose connection has ended may have been started again: its name is free, and it is called."""
        self._lost[name] = str(lost).rstrip(".")
        self._ready.pop(name, None)
        if name in self.peers:
            self.peers.pop(name).close()
        with self._lock:
            self._taken.discard(name)
        if name in self._before and not self._closing.wait(0.05):
            _start(self._call, name)

    def _all_ready(self) -> bool:
        """Whether all have met all, this time; from then on a loss is a failure."""
        with self._lock:
            if self._noticed.empty() and all(self._ready.get(name) == self.run_id for name in self._others):
                self._joined.set()
            return self._joined.is_set()

    def _missing(self, waiting: set[str], door: Entrance) -> str:
        if not waiting:
            late = [name for name in self._others if self._ready.get(name) != self.run_id]
            return f"{' and '.join(late)} did not meet all others in time."
        missing = [name for name in self._others if name in waiting]
        line = f"{' and '.join(missing)} did not come in time"
        line += "".join(f"; {self._lost[name]}, and did not come again" for name in missing if name in self._lost)
        return f"{line}{door.sent_away()}."

    def _call(self, name: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                peer = entrance.call(name, self._addresses[name], self.credentials, lambda: self._end)
                theirs = entrance.hello_of(peer, mine := self._hello())
                if theirs.get("me") != name:
                    raise PartyError(f"{name} says it is {str(theirs.get('me'))[:40]!r}.")
                entrance.certified(peer, name)
            except Exception as error:
                # An entrance full of strangers may close whoever came first.
                if isinstance(error, GoneError) and attempt < _ATTEMPTS - 1 and not self._closing.wait(0.2):
                    continue
                self._noticed.put((name, PartyError(str(as_party_error(name, error)))))
                return
            self._agree(peer, name, mine, theirs)
            return

    def _welcome(self, peer: Peer):
        """Hear someone who called; a stranger is told why it is sent away, if it listens."""
        theirs = entrance.hello_of(peer, mine := self._hello())
        name = theirs.get("me")
        try:
            if name not in self._after:
                raise PartyError(f"{peer.name} says it is {str(name)[:40]!r}, expected was {' or '.join(self._after)}.")
            entrance.certified(peer, name)
        except PartyError as error:
            with contextlib.suppress(PartyError):
                entrance.tell(peer, refused=str(error))
            raise
        return lambda: self._agree_once(peer, name, mine, theirs)

    def _agree_once(self, peer: Peer, name: str, mine: dict, theirs: dict) -> None:
        """A second caller with the name of one who is here is sent away; it may come again."""
        with self._lock:
            first = name not in self._taken
            self._taken.add(name)
        if first:
            self._agree(peer, name, mine, theirs)
            return
        with contextlib.suppress(PartyError):
            entrance.tell(peer, refused=f"{name} is here already", again=True)
        peer.close()

    def _hello(self) -> dict:
        hello = {"me": self.me, "digest": self._digest, "code": self._code, "nonce": secrets.token_hex(32)}
        return hello | {"number": self._numbers[self.me], "refusal": self._refusal and self._refusal[:SHORT]}

    def _agree(self, peer: Peer, name: str, mine: dict, theirs: dict) -> None:
        """Compare what both are about to do; the result is what :meth:`join` waits for."""
        peer.name = name
        try:
            entrance.agree(peer, mine, theirs, self._job, self._rows)
            self._numbers[name] = str(theirs.get("number"))
        except Exception as error:
            peer.close()
            self._noticed.put((name, as_party_error(name, error)))
            return
        self._noticed.put((name, peer))

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
                    raise PartyError(f"{peer.name} gave up: {str(message.get('reason'))[:SHORT]}")
                if message.get("type") == "ready":
                    self._ready[peer.name] = message.get("run_id")
                    self._noticed.put((peer.name, None))
                if message.get("type") == "done" and not finished:
                    finished = True
                    self._finished.put(peer.name)
            except Exception as error:
                # Who has finished may leave.
                if not self._closing.is_set() and not finished:
                    self._fail(peer, as_party_error(peer.name, error))
                return

    def _fail(self, peer: Peer, error: PartyError) -> None:
        with self._lock:
            if not self._joined.is_set():
                self._noticed.put((peer.name, error))
                return
        self.failure = self.failure or error
        self.failed.set()

    def _beat(self, peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.wait(_BEAT_SECONDS):
                peer.send(type="beat")


def _start(target, *arguments) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
