"""How much the service takes on at a time: requests by number, bytes as they come, and how long each may take.

What is over the limits is refused at once (503 with Retry-After), so that what was taken on is answered. Who is slow
is not refused as long as there is room; where room is wanted by another, the transfer that is furthest behind its
schedule, all of it within its time limit at an even pace, ends first. All counting happens on the event loop's thread;
nothing here locks.

Half of ``max_bytes`` is for bodies that arrive and wait, half for evaluations and the replies that come of them: bodies
can never take the room in which they are to be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int, settle
from tfprivacy_lab.he.ring.parameters import MAX_MESSAGE_BYTES

MEBIBYTE = 2**20
_LONGEST_RETRY_AFTER = 30
PATIENCE_SECONDS = 0.05
"""No transfer is ended for others that is less behind: the first bytes are on their way."""
CREDIT_SECONDS = 1.0
"""How far ahead of its schedule a transfer may be: who sends all but the last byte and stops is soon behind."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Args:
        max_body_bytes: Largest query, in bytes; a larger one is refused with 413.
        max_reply_bytes: Largest reply; a query whose reply would be larger is refused with 413 by its header.
        max_samples: Most samples in a query; more are refused with 413 by the header.
        max_bytes: What queries take at a time, in bytes: bodies as far as they have arrived, what their evaluation
            needs, and replies until the client has read them. It is never passed.
        max_requests: Queries taken on at a time, from the first byte of the body to the last of the reply.
        max_connections: Open connections, each at least a file descriptor.
        workers: Threads that evaluate; 0 takes one a processor.
        header_seconds: For the TLS handshake, for a request's head, and for what is left of a refused body.
        body_seconds: For a query's body.
        queue_seconds: Longest wait for a free worker.
        evaluate_seconds: Longest wait for the evaluation itself; its thread is not stopped.
        send_seconds: For the client to read the reply.
        shutdown_seconds: For requests in flight after SIGTERM.

    Raises:
        InputError: naming the limit.
    """

    max_body_bytes: int = 64 * MEBIBYTE
    max_reply_bytes: int = 64 * MEBIBYTE
    max_samples: int = 4096
    max_bytes: int = 512 * MEBIBYTE
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
                value = check_finite_number(field.name, value, above=0, at_most=86_400)
            elif field.name == "workers":
                value = check_positive_int("workers", value, at_least=0, at_most=1024)
            else:
                value = check_positive_int(field.name, value)
            settle(self, **{field.name: value})
        if self.max_body_bytes > MAX_MESSAGE_BYTES + MEBIBYTE:
            raise InputError(
                f"Expected max_body_bytes of at most {MAX_MESSAGE_BYTES + MEBIBYTE}, the largest message, "
                f"got {self.max_body_bytes}."
            )
        if self.max_bytes < 2 * self.max_body_bytes:
            raise InputError(
                f"Expected max_bytes={self.max_bytes} to hold twice a body of max_body_bytes={self.max_body_bytes}, as "
                "half of it is for bodies; raise the one or lower the other."
            )
        if not self.workers:
            settle(self, workers=len(os.sched_getaffinity(0)))


class Ticket:
    """One admitted query's share of the limits, given back once; and how far its transfer is."""

    def __init__(self, admission: Admission):
        self._admission, self._held = admission, True
        self.body = self.work = 0
        self.dropped = False
        self._deadline: asyncio.Timeout | None = None
        self._paid_until = self._rate = 0.0

    def arrive(self, size: int) -> bool:
        """Count more bytes of the body, if there is room for them."""
        self.move(size)
        if not self._admission.make_room(size) or not self._held:  # which may have been its own
            return False
        self.body += size
        self._admission.bodies += size
        return True

    async def take(self, size: int) -> None:
        """Wait for room to evaluate, and count it."""
        await self._admission.room(size)
        if self._held:
            self.work = size
            self._admission.work += size

    def settle(self, size: int) -> None:
        """Count the reply's ``size`` alone, from now on: body and evaluation are over."""
        if self._held:
            self._admission.give_back(self.body, self.work - size)
            self.body, self.work = 0, size

    @contextlib.asynccontextmanager
    async def transfer(self, size: int, seconds: float):
        """Move ``size`` bytes within so many seconds; TimeoutError, or earlier if it is slow and room is wanted."""
        self._paid_until, self._rate = self._admission.now(), max(size, 1) / seconds
        try:
            async with asyncio.timeout(seconds) as self._deadline:
                yield
        finally:
            self._deadline = None

    def move(self, size: int) -> None:
        """Note bytes that have moved: they pay for the time that they may take, up to ``CREDIT_SECONDS`` ahead."""
        self._paid_until = min(self._paid_until + size / self._rate, self._admission.now() + CREDIT_SECONDS)

    def behind(self, now: float) -> float:
        """By how many seconds the transfer is behind its schedule, if that is beyond patience; or 0."""
        late = now - self._paid_until
        moving = self._deadline is not None and not self._deadline.expired()
        return late if moving and late > PATIENCE_SECONDS else 0.0

    def drop(self) -> None:
        """End the transfer now, for others' sake."""
        self.dropped = True
        self._deadline.reschedule(self._admission.now())
        self.release()

    def release(self) -> None:
        """Give everything back; a second time does nothing."""
        if self._held:
            self._held = False
            self._admission.leave(self)


class Admission:
    """The count of what is in flight."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._tickets: set[Ticket] = set()
        self.bodies = self.work = 0
        self.draining = False
        self._released = asyncio.Event()
        self._turn = asyncio.Lock()
        self._mean_seconds = 0.0

    @property
    def requests(self) -> int:
        """Queries in flight."""
        return len(self._tickets)

    @property
    def bytes(self) -> int:
        """What they hold."""
        return self.bodies + self.work

    @property
    def share(self) -> int:
        """What bodies, and what evaluations and replies may hold."""
        return self._limits.max_bytes // 2

    @property
    def ready(self) -> bool:
        """Whether a small query would be taken on now."""
        return not self.draining and self.requests < self._limits.max_requests and self.bodies < self.share

    def admit(self) -> tuple[Ticket | None, str]:
        """A ticket for a query, or None and the limit in its way."""
        if self.draining:
            return None, "shutdown"
        if self.requests >= self._limits.max_requests and not self._drop(lambda ticket: True):
            return None, "requests"
        ticket = Ticket(self)
        self._tickets.add(ticket)
        return ticket, ""

    def make_room(self, size: int) -> bool:
        """Whether there is room for so many bytes of a body, now that who held it up is gone."""
        while self.bodies + size > self.share:
            if not self._drop(lambda ticket: ticket.body):
                return False
        return True

    async def room(self, size: int) -> None:
        """Wait, in the order of asking, until there is room to evaluate; replies on their way out may take it up."""
        async with self._turn:
            while self.work + size > self.share:
                if not self._drop(lambda ticket: ticket.work):
                    released = self._released
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(released.wait(), 2 * PATIENCE_SECONDS)

    def _drop(self, wanted) -> bool:
        """End the transfer that is furthest behind its schedule, among those wanted, if one is."""
        now = self.now()
        found = max(filter(wanted, self._tickets), key=lambda ticket: ticket.behind(now), default=None)
        if found is None or not found.behind(now):
            return False
        found.drop()
        return True

    def leave(self, ticket: Ticket) -> None:
        """Take back what a ticket holds."""
        self._tickets.discard(ticket)
        self.give_back(ticket.body, ticket.work)

    def give_back(self, body: int, work: int) -> None:
        """Bytes that are held no more."""
        self.bodies -= body
        self.work -= work
        self._released.set()
        self._released = asyncio.Event()

    @staticmethod
    def now() -> float:
        """The event loop's time, in seconds."""
        return asyncio.get_running_loop().time()

    def note_seconds(self, seconds: float) -> None:
        """Learn from one evaluation how long they take."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def retry_after(self) -> int:
        """Whole seconds in which what is in flight should be through."""
        seconds = self._mean_seconds * self.requests / self._limits.workers
        return min(max(1, math.ceil(seconds)), _LONGEST_RETRY_AFTER)
