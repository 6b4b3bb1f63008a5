"""Open connections, counted when they are accepted: before TLS, before HTTP, before anything is known of them.

Where another wants in and all places are taken, the connection that has been idle longest goes: one whose TLS
handshake is not over, or on which no request is being answered. So whoever speaks at once gets through a crowd of those
who say nothing. Only where all are busy, the other is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import resource
import select
import socket
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.service.metrics import LOGGER

_REFUSED_AT_A_TIME = 100
_COLLECTED_AT_A_TIME = 64
"""A handshake that fails leaves a cycle with all its buffers (CPython, gh-109534)."""
_OTHER_DESCRIPTORS = 64
"""Kept for libraries, the head's file and the log."""


@dataclasses.dataclass
class _Connection:
    """One open socket; ``protocol`` is what speaks HTTP on it, once it may."""

    socket: socket.socket
    since: float
    protocol: object = None
    ended: bool = False

    @property
    def idle_since(self) -> float | None:
        return self.since if self.protocol is None else self.protocol.idle_since

    def end(self) -> None:
        """Whoever reads from it learns that it is over, and closes it soon."""
        self.ended = True
        if self.protocol is not None:
            self.protocol.transport.abort()
            return
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Connections:
    """The connections of one listening socket.

    Args:
        most: How many may be open.
        refusal: What one that is refused is told, without TLS; may be empty.
        cut: ``cut(reason)`` counts one that was refused or ended: "limit", "idle" (for another's sake), "handshake".
    """

    def __init__(self, most: int, refusal: bytes, cut):
        self._most, self._refusal, self._cut = most, refusal, cut
        self._open: dict[int, _Connection] = {}
        self._admitted = 0

    def __len__(self) -> int:
        self._open = {number: one for number, one in self._open.items() if one.socket.fileno() == number}
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether all places are taken."""
        return len(self) >= self._most

    def makes_place(self) -> bool:
        """Whether a place will be free soon: some connection, maybe told just now, is about to end."""
        return any(one.ended for one in self._open.values()) or self._end_idlest()

    def admit(self, accepted: socket.socket) -> bool:
        """Count a connection, or refuse and close it."""
        if self.full:
            with contextlib.suppress(OSError), accepted:
                accepted.setblocking(False)
                accepted.send(self._refusal)
            self._count("limit")
            return False
        self._open[accepted.fileno()] = _Connection(accepted, time.monotonic())
        self._admitted += 1
        if self._admitted % _COLLECTED_AT_A_TIME == 0:
            gc.collect()
        return True

    def ready(self, transport, protocol) -> None:
        """The handshake is over: ``protocol`` speaks on the connection, and knows since when it has been idle."""
        found = self._open.get(transport.get_extra_info("socket").fileno())
        if found is not None:
            found.protocol = protocol

    def end_late_handshakes(self, now: float, seconds: float) -> None:
        """End what has not finished its handshake in time."""
        for one in self._open.values():
            if one.protocol is None and not one.ended and now - one.since > seconds:
                one.end()
                self._count("handshake")

    def _end_idlest(self) -> bool:
        """Make a place, if some connection is idle."""
        idle = [one for one in self._open.values() if not one.ended and one.idle_since is not None]
        if not idle:
            return False
        min(idle, key=lambda one: one.idle_since).end()
        self._count("idle")
        return True

    def _count(self, reason: str) -> None:
        self._cut(reason)
        LOGGER.warning(f"connection cut: {reason}")


class Listening(socket.socket):
    """A listening socket that gives out what :class:`Connections` admits."""

    connections: Connections

    def accept(self):
        """The next connection with a place; BlockingIOError where there is none for now."""
        for _ in range(_REFUSED_AT_A_TIME):
            if self.connections.full and (not self._is_asked() or self.connections.makes_place()):
                break  # who comes after the look must not be refused, or end another, by this one
            accepted, address = super().accept()
            if self.connections.admit(accepted):
                return accepted, address
        raise BlockingIOError

    def _is_asked(self) -> bool:
        """Whether a connection waits to be accepted."""
        asked = select.poll()
        asked.register(self, select.POLLIN)
        return bool(asked.poll(0))


def listen(host: str, port: int) -> Listening:
    """Bound and listening, so that a taken port is known before anything starts.

    Raises:
        InputError: naming host and port.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.create_server(address, family=family, backlog=1024) as bound:
            return Listening(bound.family, bound.type, bound.proto, fileno=bound.detach())
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot listen on host={host!r}, port={port}: {reason}; name another.") from error


def descriptors_for(most: int) -> int:
    """How many connections, up to ``most``, this process may hold open; its own limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_DESCRIPTORS
    unlimited = hard == resource.RLIM_INFINITY
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if unlimited else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = most if soft == resource.RLIM_INFINITY else min(most, soft - _OTHER_DESCRIPTORS)
    if found < 1:
        raise InputError(
            f"Expected max_connections={most} to find file descriptors, got a limit of {soft} for this process; raise "
            "it (ulimit -n)."
        )
    if found < most:
        LOGGER.warning(f"connections limited to {found} by the process's file descriptors, not {most}")
    return found
