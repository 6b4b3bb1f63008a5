"""The engine's bytes travel inside the connections between parties, and the engine itself has no port.

The engine takes plain requests from whoever reaches it, with TLS or without: a message under another party's name,
whose key can be guessed, would count as that party's share. So it listens on a Unix socket in a folder that only this
user may enter. For every other party there is a second socket in that folder: what the engine sends there goes over
the connection to that party, whose certificate was checked, and on to that party's engine. The folder is there only
while engines connect.

The engine believes the sender's number in a message. So of what comes from a party only whole messages are handed on,
each of the one kind that engines send, under that party's own number: no party can speak for another.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import socket
import struct
import tempfile
import threading
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.transport.peers import CLOSE, DATA, OPEN, PartyError, Peer

_PIECE = 1 << 18
# Bytes that a Unix socket's address holds on every system.
_LONGEST_PATH = 100
_ENGINE_SECONDS = 30.0
# What a message of the engine begins with: brpc's frame, and in its meta data the one method, uncompressed, and an id.
_FRAME, _MAGIC = struct.Struct(">4sII"), b"PRPC"
_PUSH = b"\n0\n(org.interconnection.link.ReceiverService\x12\x04Push\x18\x00 "
# The engine cuts at a mebibyte.
_LONGEST_MESSAGE, _MOST_FIELDS = 4 << 20, 16
_PREFIX, _FOLDERS = "tfprivacy_lab_mpc_", set()


class Relay:
    """Carries bytes between this party's engine and those of the others.

    Args:
        ranks: All names, in the order that everyone knows.
        me: This party's name.
    """

    def __init__(self, ranks: tuple[str, ...], me: str):
        self._ranks, self._me, self._folder = ranks, me, None
        if len(os.fsencode(os.path.join(tempfile.gettempdir(), f"{_PREFIX}12345678", "0"))) > _LONGEST_PATH:
            raise InputError(
                f"Expected a folder for sockets with a shorter name than {tempfile.gettempdir()}; set TMPDIR."
            )
        self._channels: dict[tuple[str, int], socket.socket] = {}
        self._messages: dict[tuple[str, int], Messages] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._listeners: list[socket.socket] = []

    def addresses(self) -> dict[str, str]:
        """Where this party's engine finds the others, and itself: for the engine's description."""
        return {name: f"unix:{self._path(name)}" for name in self._ranks}

    def start(self, peers: dict[str, Peer]) -> None:
        """Wait for the engine to call the others."""
        self._folder = tempfile.mkdtemp(prefix=_PREFIX)
        _FOLDERS.add(self._folder)
        for name, peer in peers.items():
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(self._path(name))
            listener.listen()
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, peer), daemon=True).start()

    def take(self, peer: Peer, kind: int, channel: int, data: bytes) -> None:
        """What a peer sent for this party's engine.

        Raises:
            PartyError: if it is not what an engine sends, or in another party's name.
        """
        key = (peer.name, channel)
        if kind == OPEN:
            self._open(peer, channel)
            return
        with self._lock:
            connection = self._channels.pop(key, None) if kind == CLOSE else self._channels.get(key)
        if connection is None:
            return
        if kind == CLOSE:
            self._messages.pop(key, None)
            _close(connection)
            return
        # On channels that this party opened its engine asks, and takes answers only.
        if key in self._messages:
            data = self._messages[key].whole(data)
        with contextlib.suppress(OSError):
            connection.sendall(data)

    def connected(self) -> None:
        """This party's engine has reached all others, and they have reached it: nobody else may enter."""
        for listener in self._listeners:
            _close(listener)
        remove_folders(self._folder)

    def stop(self) -> None:
        """Take no more calls. Connections to the engine stay: it would end the process if it could not send."""
        self._ended.set()
        self.connected()

    def _path(self, name: str) -> str:
        if self._folder is None:
            raise FileNotFoundError("this party has not met the others")
        return os.path.join(self._folder, str(self._ranks.index(name)))

    def _accept(self, listener: socket.socket, peer: Peer) -> None:
        # Both ends open channels: the party that comes first has the even ones.
        odd = self._ranks.index(self._me) > self._ranks.index(peer.name)
        for number in itertools.count():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            channel = 2 * number + odd
            # Known before it is announced: an answer may come at once.
            self._keep(peer, channel, connection)
            threading.Thread(target=self._pump, args=(peer, channel, connection, True), daemon=True).start()

    def _open(self, peer: Peer, channel: int) -> None:
        """Connect a peer's channel to this party's engine, which may still be starting."""
        end = time.monotonic() + _ENGINE_SECONDS
        while not self._ended.wait(0.01):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(self._path(self._me))
            except OSError:
                connection.close()
                if time.monotonic() > end:
                    break
                continue
            self._messages[peer.name, channel] = Messages(peer.name, self._ranks.index(peer.name))
            self._keep(peer, channel, connection)
            threading.Thread(target=self._pump, args=(peer, channel, connection, False), daemon=True).start()
            return
        with contextlib.suppress(OSError):
            peer.send_frame(CLOSE, channel)

    def _keep(self, peer: Peer, channel: int, connection: socket.socket) -> None:
        with self._lock:
            self._channels[peer.name, channel] = connection

    def _pump(self, peer: Peer, channel: int, connection: socket.socket, announce: bool) -> None:
        """From the engine to the peer, until the engine closes."""
        try:
            if announce:
                peer.send_frame(OPEN, channel)
            while data := connection.recv(_PIECE):
                peer.send_frame(DATA, channel, data)
            peer.send_frame(CLOSE, channel)
        except OSError:
            return  # The control connection says why.
        with self._lock:
            self._channels.pop((peer.name, channel), None)
        _close(connection)


class Messages:
    """What one party's engine sends on a channel, cut into messages.

    Args:
        name: The party.
        rank: Its number, which must stand in each.
    """

    def __init__(self, name: str, rank: int):
        self._name, self._rank, self._rest = name, rank, bytearray()

    def whole(self, data: bytes) -> bytes:
        """The messages that ``data`` completes.

        Raises:
            PartyError: if one is none, or has another sender.
        """
        self._rest += data
        start, held = 0, bytes(self._rest)
        while len(held) - start >= _FRAME.size:
            magic, length, meta = _FRAME.unpack_from(held, start)
            if magic != _MAGIC or length > _LONGEST_MESSAGE:
                raise PartyError(f"{self._name} sent for the engine what is no message of an engine.")
            body = start + _FRAME.size
            if len(held) < body + length:
                break
            if _sender(held[body : body + meta], held[body + meta : body + length]) != self._rank:
                raise PartyError(f"{self._name} sent for the engine what is no message of an engine, or not its own.")
            start = body + length
        del self._rest[:start]
        return held[:start]


def _sender(meta: bytes, push: bytes) -> int | None:
    """The sender's number in a push, of which it is field 1, or 0 without; None if it is anything else."""
    rank, at = None, 0
    try:
        if not meta.startswith(_PUSH) or _number(meta, len(_PUSH))[1] != len(meta):
            return None
        for _ in range(_MOST_FIELDS):
            if at >= len(push):
                return None if at > len(push) else rank or 0
            # Field and type in one byte: a longer form might be read as another field.
            tag, value, at = push[at], *_number(push, at + 1)
            if tag >> 3 == 1 and (tag != 8 or rank is not None):
                return None
            rank = value if tag == 8 else rank
            if tag > 127 or tag & 7 not in (0, 2):
                return None
            at += value if tag & 7 == 2 else 0
    except IndexError:
        pass
    return None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """(value, end) of the variable-length number at a place; IndexError if there is none."""
    value = 0
    for place in range(10):
        value |= (data[at + place] & 127) << 7 * place
        if data[at + place] < 128:
            return value, at + place + 1
    raise IndexError


def remove_folders(*folders: str | None) -> None:
    """Remove folders of sockets, all of this process unless some are named; for a process that ends by itself."""
    for folder in folders or tuple(_FOLDERS):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _FOLDERS.discard(folder)


atexit.register(remove_folders)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
