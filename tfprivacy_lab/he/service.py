"""The service: a head behind HTTP, as an ASGI application.

A query goes through these steps; each has a limit (:class:`~tfprivacy_lab.he.admission.Limits`) and a refusal:

1. Head of the request: media type, announced length (411, 413, 415).
2. Admission by number and bytes of what is in flight (503 with Retry-After), before the body is read.
3. Body, against a deadline (408).
4. A worker thread, in the order of arrival (503 with Retry-After); who has left meanwhile is dropped.
5. Evaluation: :meth:`Server.evaluate <tfprivacy_lab.he.server.Server.evaluate>` (422, 504).
6. Reply, piece by piece, against a deadline; then the share of the limits is given back.

It holds no key and never sees a feature. Nothing of a body is kept, logged or shared between requests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import time
from importlib import metadata

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.admission import Admission, Limits, Ticket
from tfprivacy_lab.he.observation import LOGGER, Figures, Observed
from tfprivacy_lab.he.openapi import METRICS_TYPE, OCTETS, PROBLEM_TYPE, REFUSALS, describe
from tfprivacy_lab.he.quantize import check_head
from tfprivacy_lab.he.server import Server

_CHUNK_BYTES = 128 * 1024
_CLOSE = {"Connection": "close"}


def make_app(kernel, bias=None, limits: Limits | None = None, replies: str = "any") -> Observed:
    """The service of one head.

    Args:
        kernel: Finite, shape (d, c), Keras convention.
        bias: Finite, shape (c,), or None for zeros.
        limits: What it takes on; None takes the defaults.
        replies: As :class:`~tfprivacy_lab.he.server.Server` takes it.

    Returns:
        An ASGI application for one event loop; its ``admission`` counts what is in flight, its ``routes`` are
            the endpoints.

    Raises:
        InputError: naming the kernel or the bias.

    Guarantee: an answer of 200 is this head's exact reply to the body of its own request. What is held at
        a time is at most ``max_bytes`` and ``workers`` replies of at most 1 GiB, whatever clients do.

    Not covered: who asks (there are no accounts: put it behind a proxy that knows them), and all that
        :class:`~tfprivacy_lab.he.server.Server` leaves open, above all that answers give the head away.
    """
    server, limits = Server(kernel, bias, replies), limits or Limits()
    features, classes = check_head(kernel, bias)[0].shape
    admission = Admission(limits)
    figures = Figures(admission)
    evaluation = Evaluation(server, limits, admission, figures)
    shape = {
        "features": features,
        "classes": classes,
        "max_body_bytes": limits.max_body_bytes,
        "max_requests": limits.max_requests,
    }
    description = describe(metadata.version("tfprivacy_lab"))

    async def head(request):
        return JSONResponse(shape)

    async def healthz(request):
        return JSONResponse({"status": "ok"})

    async def readyz(request):
        if not admission.ready:
            raise _busy("readiness", admission)
        return JSONResponse({"status": "ready"})

    async def metrics(request):
        return Response(figures.text(), headers={"Content-Type": METRICS_TYPE})

    async def openapi(request):
        return JSONResponse(description)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        evaluation.pool.shutdown(wait=False, cancel_futures=True)

    routes = [Route("/v1/evaluate", evaluation, methods=["POST"])]
    for endpoint in (head, healthz, readyz, metrics, openapi):
        name = {"head": "v1/head", "openapi": "openapi.json"}.get(endpoint.__name__, endpoint.__name__)
        routes.append(Route(f"/{name}", endpoint, methods=["GET"]))
    handlers = {HTTPException: _answer_refusal, Exception: _answer_fault}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    observed = Observed(app, figures, [route.path for route in routes])
    observed.admission, observed.routes = admission, routes
    return observed


class Problem(HTTPException):
    """A refusal: one line, answered as a problem of RFC 9457."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None):
        super().__init__(status, " ".join(detail.split()), headers)


async def _answer_refusal(request, error: HTTPException) -> Response:
    """Problems of ours, and the router's 404 and 405."""
    status = error.status_code
    title = REFUSALS.get(status, str(error.detail))
    value = {"type": "about:blank", "title": title, "status": status, "detail": str(error.detail)}
    return Response(json.dumps(value), status, error.headers, PROBLEM_TYPE)


async def _answer_fault(request, error: Exception) -> Response:
    """What the client learns of a fault of ours; the log has the rest."""
    return await _answer_refusal(request, Problem(500, "A fault of the service; its log knows the request id."))


def _busy(reason: str, admission: Admission) -> Problem:
    """503, with the seconds after which to come again."""
    headers = {"Retry-After": str(admission.retry_after())}
    return Problem(503, f"Too much in flight ({reason}); try again later.", headers)


class _ClientLeftError(Exception):
    """Nobody is there to answer."""


class _Work:
    """One query's evaluation: a task that outlives its client once a thread runs it."""

    def __init__(self, ticket: Ticket):
        self.ticket, self.running, self.task = ticket, False, None

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
    """``POST /v1/evaluate``, an ASGI application of its own, for what a request-and-response view cannot do."""

    def __init__(self, server: Server, limits: Limits, admission: Admission, figures: Figures):
        self._server, self._limits, self._admission, self._figures = server, limits, admission, figures
        self._turns = asyncio.Semaphore(limits.workers)
        self.pool = concurrent.futures.ThreadPoolExecutor(limits.workers, "evaluate")

    async def __call__(self, scope, receive, send) -> None:
        """Answer one request; what it holds goes back whatever happens."""
        size = self._announced(Headers(scope=scope))
        ticket, reason = self._admission.admit(size)
        if ticket is None:
            raise self._shed(reason)
        work = _Work(ticket)
        try:
            query = await self._read(receive, size)
            work.task = asyncio.create_task(self._evaluate(query, work))
            del query
            await self._send(await self._result(work, receive), send)
        except _ClientLeftError:
            scope["left"] = True
        finally:
            work.leave()

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
        return _busy(reason, self._admission)

    async def _read(self, receive, size: int) -> bytes:
        """The body, whole, in time and of the announced length."""
        parts, got, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeftError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    parts.append(part)
                    got += len(part)
                    if got > size or (got < size and not more):
                        raise Problem(400, f"Expected a body of {size} bytes as announced, got {got}.", _CLOSE)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise Problem(408, f"Expected the body within {seconds:g} s, got {got} of {size}.", _CLOSE) from None
        self._figures.received.inc(got)
        return b"".join(parts)

    async def _evaluate(self, query: bytes, work: _Work) -> bytes:
        """One query's reply, made by a worker's thread when it is its turn."""
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise self._shed("queue") from None
        try:
            await self._admission.room()
            work.running = True
            begun = time.perf_counter()
            reply = await asyncio.get_running_loop().run_in_executor(self.pool, self._server.evaluate, query)
            seconds = time.perf_counter() - begun
        finally:
            self._turns.release()
        self._admission.note_seconds(seconds)
        self._figures.evaluating.observe(seconds)
        work.ticket.add(len(reply))
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

    async def _send(self, reply: bytes, send) -> None:
        """The reply, no faster than the client reads it; on a stall the connection is left to be closed."""
        headers = [(b"content-type", OCTETS.encode()), (b"content-length", b"%d" % len(reply))]
        view = memoryview(reply)
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for start in range(0, len(view), _CHUNK_BYTES):
                    part = bytes(view[start : start + _CHUNK_BYTES])
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            raise _ClientLeftError from None
