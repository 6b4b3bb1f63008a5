"""``POST /v1/evaluate``: one query's way through the service, each step with its limit and its refusal.

1. Head of the request: media type, announced length (411, 413, 415).
2. Admission by number (503 with Retry-After), before the body is read.
3. Body, against a deadline (408); its bytes count as they come (503), and its first hundred tell what it will take:
   samples, reply and memory (413, 422).
4. The head in the form that this query meets: one at a time is made, beside the workers (503).
5. A worker thread, in the order of arrival, and room for what the evaluation holds (503 with Retry-After); who has left
   meanwhile is dropped.
6. Evaluation: :meth:`Server.evaluate <tfprivacy_lab.he.server.head.Server.evaluate>` (422, 504).
7. Reply, piece by piece, against a deadline; then the share of the limits is given back.

A transfer that is slower than its deadline allows ends earlier where another waits for the room that it holds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages.wire import HEADER_BYTES
from tfprivacy_lab.he.server.head import Cost, Server
from tfprivacy_lab.he.service.admission import Admission, Limits, Ticket
from tfprivacy_lab.he.service.metrics import LOGGER, Figures
from tfprivacy_lab.he.service.openapi import OCTETS

_CHUNK_BYTES = 128 * 1024
CLOSE = {"Connection": "close"}


class Problem(HTTPException):
    """A refusal: one line, answered as a problem of RFC 9457."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None):
        super().__init__(status, " ".join(detail.split()), headers)


def busy(reason: str, admission: Admission) -> Problem:
    """503, with the seconds after which to come again."""
    headers = {"Retry-After": str(admission.retry_after())}
    return Problem(503, f"Too much in flight ({reason}); try again later.", headers)


class _ClientLeftError(Exception):
    """Nobody is there to answer."""


class _Work:
    """One query's evaluation: a task that outlives its client once a thread runs it."""

    def __init__(self, ticket: Ticket):
        self.ticket, self.running, self.task = ticket, False, None
        self.samples = 0

    def leave(self) -> None:
        """Give the ticket back, as soon as no thread works for it any more."""
        if self.task is None or self.task.done():
            self.ticket.release()
            return
        self.task.add_done_callback(self._finish)
        if not self.running:
            self.task.cancel()

    def _finish(self, task) -> None:
        if not task.cancelled():
            task.exception()
        self.ticket.release()


class Evaluation:
    """The endpoint, an ASGI application of its own, for what a request-and-response view cannot do."""

    def __init__(self, server: Server, limits: Limits, admission: Admission, figures: Figures):
        self._server, self._limits, self._admission, self._figures = server, limits, admission, figures
        self._turns = asyncio.Semaphore(limits.workers)
        self.pool = concurrent.futures.ThreadPoolExecutor(limits.workers, "evaluate")
        self.preparing = concurrent.futures.ThreadPoolExecutor(1, "prepare")

    async def __call__(self, scope, receive, send) -> None:
        """Answer one request; what it holds goes back whatever happens."""
        size = self._announced(Headers(scope=scope))
        ticket, reason = self._admission.admit()
        if ticket is None:
            raise self._shed(reason)
        work = _Work(ticket)
        try:
            query, cost = await self._read(receive, size, ticket)
            work.samples = scope["samples"] = cost.samples
            work.task = asyncio.create_task(self._evaluate(query, cost, work))
            del query
            await self._send(await self._result(work, receive), work, send)
        except _ClientLeftError:
            scope["left"] = True
        finally:
            work.leave()

    def close(self) -> None:
        """Begin nothing more."""
        for pool in (self.pool, self.preparing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _announced(self, headers: Headers) -> int:
        """The body's length as announced, within the limit."""
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != OCTETS:
            raise Problem(415, f"Expected Content-Type {OCTETS}; send what encrypt wrote.")
        text = headers.get("content-length", "")
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise Problem(411, "Expected a Content-Length; send the query in one piece.")
        size, most = int(text), self._limits.max_body_bytes
        if size > most:
            raise Problem(413, f"Expected a query of at most {most} bytes, got {size}; send fewer samples a query.")
        return size

    def _shed(self, reason: str) -> Problem:
        self._figures.shed.labels(reason).inc()
        return busy(reason, self._admission)

    async def _read(self, receive, size: int, ticket: Ticket) -> tuple[bytearray, Cost]:
        """The body, whole, in time and of the announced length, and what it will take."""
        body, cost, more = bytearray(), None, True
        try:
            async with ticket.transfer(size, self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeftError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(part) > size or (len(body) + len(part) < size and not more):
                        got = len(body) + len(part)
                        raise Problem(400, f"Expected a body of {size} bytes as announced, got {got}.", CLOSE)
                    if not ticket.arrive(len(part)):
                        raise self._shed("bytes")
                    body += part
                    if cost is None and (len(body) >= HEADER_BYTES or not more):
                        cost = self._cost(bytes(body[:HEADER_BYTES]), size)
        except TimeoutError:
            wanted = f"within {self._limits.body_seconds:g} s"
            if ticket.dropped:
                wanted = f"at the speed of {size} bytes {wanted}, as others waited for its place"
                self._figures.shed.labels("slow body").inc()
            raise Problem(408, f"Expected the body {wanted}, got {len(body)} of {size}.", CLOSE) from None
        self._figures.received.inc(len(body))
        return body, cost

    def _cost(self, start: bytes, size: int) -> Cost:
        """What a query takes by its header, within the limits."""
        try:
            cost = self._server.cost(start, size)
        except InputError as error:
            raise Problem(422, str(error)) from None
        limits = self._limits
        for got, most, what in (
            (cost.samples, limits.max_samples, "samples (max_samples)"),
            (cost.reply_bytes, limits.max_reply_bytes, "bytes of reply (max_reply_bytes)"),
            (cost.working_bytes, self._admission.share, "bytes to evaluate it in (half of max_bytes)"),
        ):
            if got > most:
                raise Problem(413, f"Expected a query of at most {most} {what}, got {got}; send fewer samples a query.")
        return cost

    async def _evaluate(self, query: bytearray, cost: Cost, work: _Work) -> bytes:
        """One query's reply, made by a worker's thread when it is its turn."""
        loop, reason = asyncio.get_running_loop(), "preparing"
        cost = dataclasses.replace(cost, key=self._server.key(query))
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                head = None
                while head is None:
                    # Nobody holds a head while it waits: those there are no more than are kept, and one a worker.
                    if not self._server.is_prepared(cost):
                        reason = "preparing"
                        await loop.run_in_executor(self.preparing, self._server.prepare, cost)
                    reason = "queue"
                    await self._turns.acquire()
                    try:
                        head = self._server.prepared(cost)
                    finally:
                        if head is None:
                            self._turns.release()
        except TimeoutError:
            raise self._shed(reason) from None
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                await work.ticket.take(cost.working_bytes)
            work.running = True
            begun = time.perf_counter()
            reply = await loop.run_in_executor(self.pool, self._server.evaluate, query, "query", None, head)
            seconds = time.perf_counter() - begun
        except TimeoutError:
            raise self._shed("bytes") from None
        finally:
            del head
            self._turns.release()
        self._admission.note_seconds(seconds)
        self._figures.evaluating.observe(seconds)
        work.ticket.settle(len(reply))
        return reply

    async def _result(self, work: _Work, receive) -> bytes:
        """The reply, unless the client leaves or time runs out before."""
        watch = asyncio.create_task(receive())
        try:
            patience = self._limits.queue_seconds + self._limits.evaluate_seconds
            await asyncio.wait({work.task, watch}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if work.task.done():
                return work.task.result()
            if watch.done():
                raise _ClientLeftError
            raise Problem(504, f"Expected the evaluation within {patience:g} s; send fewer samples a query.")
        except InputError as error:
            raise Problem(422, str(error)) from None
        except MemoryError:
            LOGGER.error("out of memory")
            raise self._shed("memory") from None
        finally:
            watch.cancel()

    async def _send(self, reply: bytes, work: _Work, send) -> None:
        """The reply, no faster than the client reads it; on a stall the connection is left to be closed."""
        self._figures.samples.inc(work.samples)
        headers = [(b"content-type", OCTETS.encode()), (b"content-length", b"%d" % len(reply))]
        headers.append((b"x-samples", b"%d" % work.samples))
        view, ticket = memoryview(reply), work.ticket
        try:
            async with ticket.transfer(len(reply), self._limits.send_seconds):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for start in range(0, len(view), _CHUNK_BYTES):
                    part = bytes(view[start : start + _CHUNK_BYTES])
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    ticket.move(len(part))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            if ticket.dropped:
                self._figures.shed.labels("slow reader").inc()
            raise _ClientLeftError from None
