"""How parties find each other and notice that one is gone: a connection between any two, beside the engine's own.

Before the engine starts, each tells the other who it is, which job it runs and what it compiled; whatever differs ends
the run there, with a line that names the difference. Afterwards the connection carries a heartbeat: a process that
dies closes it at once, one that hangs falls silent, one that gives up says why. The engine, which would wait for
minutes for a message that never comes, is then left to itself.

With credentials the connection is TLS 1.3, both sides show certificates, and the name in the certificate must be the
name of the party. Without, anyone who reaches the port can pretend to be a party: loopback only.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import struct
import threading
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.certificates import Credentials
from tfprivacy_lab.mpc.jobs import difference

MAGIC = "tfprivacy_lab.mpc/1"
_LARGEST_MESSAGE = 64 << 20
_BEAT_SECONDS, _SILENCE_SECONDS, _HELLO_SECONDS, _GRACE_SECONDS = 1.0, 8.0, 5.0, 4.0
# A party that refuses its own data is ready long before the others have compiled.
_TELLING_SECONDS = 30.0


class PartyError(InputError):
    """Another party is not there, not who or what was agreed, or gave up; the message is one line."""


class Peer:
    """The connection to one other party: messages are JSON objects behind their length."""

    def __init__(self, connection: socket.socket):
        self.connection, self.name = connection, "another party"
        self._sending = threading.Lock()

    def send(self, **message) -> None:
        """Send one message."""
        body = json.dumps(message, allow_nan=False).encode()
        with self._sending:
            self.connection.sendall(struct.pack("<I", len(body)) + body)

    def receive(self, seconds: float) -> dict:
        """The next message.

        Raises:
            PartyError: if there is none in time, or it is none.
        """
        self.connection.settimeout(seconds)
        try:
            (length,) = struct.unpack("<I", self._exactly(4))
            if length > _LARGEST_MESSAGE:
                raise PartyError(f"{self.name} does not speak {MAGIC}; is it a party at all, and with TLS as here?")
            message = json.loads(self._exactly(length))
            if not isinstance(message, dict):
                raise ValueError
            return message
        except PartyError:
            raise
        except ssl.SSLError as error:
            raise PartyError(f"{self.name} was refused or refuses: {_reason(error)}.") from error
        except TimeoutError as error:
            raise PartyError(f"{self.name} fell silent for {seconds:.0f} s.") from error
        except OSError as error:
            raise PartyError(f"{self.name} is gone: {error.strerror or error}.") from error
        except ValueError as error:
            raise PartyError(f"{self.name} sent what is no message of {MAGIC}.") from error

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.connection.recv(min(count - len(data), 1 << 20))
            if not part:
                raise PartyError(f"{self.name} is gone: its process ended or closed the connection.")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Control:
    """All of a party's connections to the others.

    Args:
        me: This party's name.
        ranks: All names, in the order that everyone knows: each calls those before it and answers those after.
        addresses: Name to (host, port).
        credentials: For TLS, or None.
    """

    def __init__(self, me: str, ranks, addresses: dict[str, tuple[str, int]], credentials: Credentials | None):
        self.me, self.credentials, self._addresses = me, credentials, addresses
        rank = ranks.index(me)
        self._before, self._after = ranks[:rank], ranks[rank + 1 :]
        self.peers: dict[str, Peer] = {}
        self._engines: dict[str, str] = {}
        self.failure: PartyError | None = None
        self.failed, self._closing = threading.Event(), threading.Event()
        self._finished: queue.Queue = queue.Queue()

    def join(self, job: dict, code: str, engine: str, seconds: float, refusal: str | None = None) -> dict[str, str]:
        """Meet all others.

        Args:
            job: This party's job; every other's must be equal.
            code: Digest of the programs it compiled.
            engine: ``host:port`` at which its engine will listen.
            seconds: How long to wait for the others.
            refusal: Why this party will not compute; the others are told instead.

        Returns:
            Everyone's engine address by name.

        Raises:
            PartyError: naming who is missing or what differs.
        """
        hello = {"magic": MAGIC, "me": self.me, "job": job, "code": code, "engine": engine, "refusal": refusal}
        self._engines = {self.me: engine}
        end = time.monotonic() + (min(seconds, _TELLING_SECONDS) if refusal else seconds)
        first: PartyError | None = None
        with contextlib.closing(self._listen()) as listener:
            waiting = [*self._before, *[None] * len(self._after)]
            while waiting:
                name = waiting.pop(0)
                try:
                    self._meet(self._answer(listener, end) if name is None else self._call(name, end), hello, name)
                except PartyError as error:
                    # The rest must hear of it too, rather than wait for a party that has left.
                    first = first or error
                    hello["refusal"] = hello["refusal"] or str(error)
                    end = min(end, time.monotonic() + _GRACE_SECONDS)
        if first is not None or refusal:
            self.close()
            raise first or PartyError(refusal)
        for peer in self.peers.values():
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        return self._engines

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
        self._tell(type="failed", reason=reason)
        self.close()

    def close(self) -> None:
        """Close all connections; what they say from now on is no failure."""
        self._closing.set()
        for peer in self.peers.values():
            peer.close()

    def _tell(self, **message) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.send(**message)

    def _listen(self) -> socket.socket:
        host, port = self._addresses[self.me]
        try:
            return socket.create_server((host, port))
        except OSError as error:
            raise InputError(f"Cannot listen at {host}:{port}: {error.strerror or error}.") from error

    def _call(self, name: str, deadline: float) -> Peer:
        address = self._addresses[name]
        while True:
            try:
                connection = socket.create_connection(address, timeout=2)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PartyError(f"{name} did not come to {address[0]}:{address[1]} in time.") from error
                threading.Event().wait(0.05)
        return self._secured(connection, name)

    def _answer(self, listener: socket.socket, deadline: float) -> Peer:
        try:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            connection, _ = listener.accept()
        except TimeoutError as error:
            missing = [name for name in self._after if name not in self._engines]
            raise PartyError(f"{' and '.join(missing)} did not come in time.") from error
        return self._secured(connection, None)

    def _secured(self, connection: socket.socket, name: str | None) -> Peer:
        """A peer over the connection, in TLS if this party has credentials; ``name`` if this party called."""
        connection.settimeout(_HELLO_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        who = name or "someone who called"
        if self.credentials is not None:
            context = self.credentials.context(server=name is None)
            try:
                connection = context.wrap_socket(connection, server_side=name is None, server_hostname=name)
            except (ssl.SSLError, OSError) as error:
                raise PartyError(f"{who} has no certificate of this group: {_reason(error)}.") from error
        peer = Peer(connection)
        peer.name = who
        return peer

    def _meet(self, peer: Peer, hello: dict, called: str | None) -> None:
        """Exchange hellos with a peer and compare; ``called`` is its name if this party called it."""
        try:
            peer.send(**hello)
        except (ssl.SSLError, OSError) as error:
            raise PartyError(f"{peer.name} ended the connection: {_reason(error)}.") from error
        theirs = peer.receive(_HELLO_SECONDS)
        name = theirs.get("me")
        if theirs.get("magic") != MAGIC or not isinstance(theirs.get("job"), dict):
            raise PartyError(f"{peer.name} does not speak {MAGIC}.")
        expected = [called] if called else [name for name in self._after if name not in self._engines]
        if name not in expected:
            raise PartyError(f"{peer.name} says it is {str(name)[:40]!r}, expected was {' or '.join(expected)}.")
        if self.credentials is not None:
            signed = [value for kind, value in peer.connection.getpeercert().get("subjectAltName", ()) if kind == "DNS"]
            if signed != [name]:
                raise PartyError(f"{name} shows the certificate of {', '.join(signed)}.")
        peer.name, self._engines[name] = name, str(theirs.get("engine"))
        found = difference(hello["job"], theirs["job"])
        if found:
            raise PartyError(f"{name} runs another job: {found}.")
        if theirs.get("refusal"):
            raise PartyError(f"{name} gave up: {str(theirs['refusal'])[:300]}")
        if theirs.get("code") != hello["code"] and not hello["refusal"]:
            raise PartyError(f"{name} compiled other programs from the same job; do versions differ?")
        self.peers[name] = peer

    def _watch(self, peer: Peer) -> None:
        """Read a peer's messages until it fails or has finished."""
        while not self._closing.is_set():
            try:
                message = peer.receive(_SILENCE_SECONDS)
                if message.get("type") == "failed":
                    raise PartyError(f"{peer.name} gave up: {str(message.get('reason'))[:300]}")
                if message.get("type") == "done":
                    self._finished.put(peer.name)
                    return
            except PartyError as error:
                if not self._closing.is_set():
                    self.failure = self.failure or error
                    self.failed.set()
                return

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_SECONDS):
            self._tell(type="beat")


def _reason(error: OSError) -> str:
    """OpenSSL's reason in a few words."""
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
