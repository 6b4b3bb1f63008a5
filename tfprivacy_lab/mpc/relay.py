"""The engine's bytes travel inside the connections between parties, and the engine itself has no port.

The engine takes plain requests from whoever reaches it, with TLS or without: a message under another party's name,
whose key can be guessed, would count as that party's share. So it listens on a Unix socket in a folder that only this
user may enter. For every other party there is a second socket in that folder: what the engine sends there goes over
the connection to that party, whose certificate was checked, and on to that party's engine. The folder is there only
while engines connect.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import socket
import tempfile
import threading
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.peers import CLOSE, DATA, OPEN, Peer

_PIECE = 1 << 18
# What a Unix socket's address holds on every system.
_LONGEST_PATH = 100
_ENGINE_SECONDS = 30.0
_PREFIX, _FOLDERS = "tfprivacy_lab_mpc_", set()


class Relay:
    """Carries bytes between this party's engine and those of the others.

    Args:
        ranks: All names, in the order that everyone knows.
        me: This party's name.
    """

    def __init__(self, ranks: tuple[str, ...], me: str):
        self._ranks, self._me, self._folder = ranks, me, None
        if len(os.path.join(tempfile.gettempdir(), f"{_PREFIX}12345678", "0")) > _LONGEST_PATH:
            raise InputError(
                f"Expected a folder for sockets with a shorter name than {tempfile.gettempdir()}; set TMPDIR."
            )
        self._channels: dict[tuple[str, int], socket.socket] = {}
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
        """What a peer sent for this party's engine."""
        key = (peer.name, channel)
        if kind == OPEN:
            self._open(peer, channel)
            return
        with self._lock:
            connection = self._channels.pop(key, None) if kind == CLOSE else self._channels.get(key)
        if connection is None:
            return
        if kind == CLOSE:
            _close(connection)
            return
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
