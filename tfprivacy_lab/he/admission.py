"""How much the service takes on at a time: requests by number and by bytes, and how long each may take.

What is over the limits is refused at once (503 with Retry-After), so that what was taken on is answered.
All counting happens on the event loop's thread; nothing here locks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int
from tfprivacy_lab.he.parameters import MAX_MESSAGE_BYTES

MEBIBYTE = 2**20
_LONGEST_RETRY_AFTER = 30


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Args:
        max_body_bytes: Largest query, in bytes; a larger one is refused with 413.
        max_bytes: Bodies and replies held at a time, in bytes. A reply is known only when it is made: up to
            ``workers`` of them may stand above this.
        max_requests: Queries taken on at a time, from the first byte of the body to the last of the reply.
        max_connections: Open connections, each at least a file descriptor.
        workers: Threads that evaluate; 0 takes one a processor.
        header_seconds: For a request's head, and for what is left of a refused body.
        body_seconds: For a query's body.
        queue_seconds: Longest wait for a free worker.
        evaluate_seconds: Longest wait for the evaluation itself; its thread is not stopped.
        send_seconds: For the client to read the reply.
        shutdown_seconds: For requests in flight after SIGTERM.

    Raises:
        InputError: naming the limit.
    """

    max_body_bytes: int = 64 * MEBIBYTE
    max_bytes: int = 256 * MEBIBYTE
    max_requests: int = 64
    max_connections: int = 512
    workers: int = 0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    queue_seconds: float = 10.0
    evaluate_seconds: float = 120.0
    send_seconds: float = 60.0
    shutdown_seconds: float = 30.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_seconds"):
                check_finite_number(field.name, value, above=0, at_most=86_400)
            elif field.name == "workers":
                check_positive_int("workers", value, at_least=0, at_most=1024)
            else:
                check_positive_int(field.name, value)
        if self.max_body_bytes > MAX_MESSAGE_BYTES + MEBIBYTE:
            raise InputError(
                f"Expected max_body_bytes of at most {MAX_MESSAGE_BYTES + MEBIBYTE}, the largest message, "
                f"got {self.max_body_bytes}."
            )
        if self.max_bytes < self.max_body_bytes:
            raise InputError(
                f"Expected max_bytes={self.max_bytes} to hold at least one body of "
                f"max_body_bytes={self.max_body_bytes}; raise the one or lower the other."
            )
        if not self.workers:
            object.__setattr__(self, "workers", len(os.sched_getaffinity(0)))


class Ticket:
    """One admitted query's share of the limits, given back once."""

    def __init__(self, admission: Admission, size: int):
        self._admission, self._bytes, self._held = admission, size, True

    def add(self, size: int) -> None:
        """Count the reply too."""
        if self._held:
            self._bytes += size
            self._admission.bytes += size

    def release(self) -> None:
        """Give everything back; a second time does nothing."""
        if self._held:
            self._held = False
            self._admission.release(self._bytes)


class Admission:
    """The count of what is in flight."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.requests = 0
        self.bytes = 0
        self.draining = False
        self._released = asyncio.Event()
        self._mean_seconds = 0.0

    @property
    def ready(self) -> bool:
        """Whether a small query would be taken on now."""
        return not self.draining and self.requests < self._limits.max_requests and self.bytes < self._limits.max_bytes

    def admit(self, size: int) -> tuple[Ticket | None, str]:
        """A ticket for a body of ``size`` bytes, or None and the limit in its way."""
        if self.draining:
            return None, "shutdown"
        if self.requests >= self._limits.max_requests:
            return None, "requests"
        if self.bytes + size > self._limits.max_bytes:
            return None, "bytes"
        self.requests += 1
        self.bytes += size
        return Ticket(self, size), ""

    def release(self, size: int) -> None:
        """What a ticket gives back."""
        self.requests -= 1
        self.bytes -= size
        self._released.set()
        self._released = asyncio.Event()

    async def room(self) -> None:
        """Wait until replies on their way out leave room for another.

        Bodies alone never pass the limit, and a reply leaves within ``send_seconds``: this always ends.
        """
        while self.bytes > self._limits.max_bytes:
            await self._released.wait()

    def note_seconds(self, seconds: float) -> None:
        """Learn from one evaluation how long they take."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def retry_after(self) -> int:
        """Whole seconds in which what is in flight should be through."""
        seconds = self._mean_seconds * self.requests / self._limits.workers
        return min(max(1, math.ceil(seconds)), _LONGEST_RETRY_AFTER)
