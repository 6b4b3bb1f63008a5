"""What an operator sees of the service: request ids, one log line a request, and metrics. Never a body.

A log line is one JSON object: time, level, logger, message; for a request also request_id, method, route,
status, samples (of a query that was taken on), bytes_in (announced), bytes_out, seconds. Addresses, query strings and
header values are left out. Lines that anyone can cause for nothing are limited in number (:class:`Quota`).
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

LOGGER = logging.getLogger("tfprivacy_lab.he.service")
LEFT = 499
"""Logged as the status, as nginx does, when the client left before its answer."""

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: no line break in a field can end it."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Quota(logging.Filter):
    """Lets so many lines of a kind through in so many seconds; the next one says how many were left out.

    A kind is a level and one of the service's own messages, of requests also route and status; or a level of another
    logger, whose messages may name whoever caused them. Answered queries are all logged.
    """

    def __init__(self, lines: int = 20, seconds: float = 10.0, now=time.monotonic):
        super().__init__()
        self._lines, self._seconds, self._now = lines, seconds, now
        self._seen: dict[tuple, list] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        fields = getattr(record, "fields", {})
        if fields.get("samples") and fields["status"] == 200:
            return True
        message = record.msg if record.name == LOGGER.name else None
        kind = (record.name, record.levelno, message, fields.get("route"), fields.get("status"))
        seen, now = self._seen.setdefault(kind, [-math.inf, 0, 0]), self._now()
        if now - seen[0] >= self._seconds:
            seen[0], seen[1] = now, 0
        if seen[1] >= self._lines:
            seen[2] += 1
            return False
        seen[1] += 1
        if seen[2]:
            record.fields = {**fields, "left_out": seen[2]}
            seen[2] = 0
        return True


class Figures:
    """The metrics of one service, in a registry of its own."""

    def __init__(self, admission):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self.requests = Counter("he_requests", "Requests answered.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "he_request_seconds", "From head to last byte.", ("route",), registry=registry, buckets=_SECONDS
        )
        self.evaluating = Histogram("he_evaluate_seconds", "In a worker.", registry=registry, buckets=_SECONDS)
        self.received = Counter("he_query_bytes", "Bodies of queries read.", registry=registry)
        self.samples = Counter("he_samples", "Samples of queries that were answered.", registry=registry)
        self.cut = Counter(
            "he_connections_cut", "Connections refused or ended, by reason.", ("reason",), registry=registry
        )
        self.sent = Counter("he_reply_bytes", "Bodies of answers written.", registry=registry)
        self.shed = Counter("he_shed", "Queries refused with 503, by limit.", ("limit",), registry=registry)
        for name, text, value in (
            ("he_requests_in_flight", "Queries taken on.", lambda: admission.requests),
            ("he_bytes_in_flight", "Bodies and replies held.", lambda: admission.bytes),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class Observed:
    """An ASGI application with ids, log lines and metrics around another; its faults end here.

    Args:
        app: The application.
        figures: The metrics.
        routes: Paths by their names; others are counted as one.
    """

    def __init__(self, app, figures: Figures, routes):
        self._app, self._figures, self._routes = app, figures, frozenset(routes)

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _WELL_FORMED.fullmatch(request_id):
            request_id = uuid.uuid4().hex.encode()
        seen = {"status": None, "bytes_out": 0}

        async def observed_send(message):
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                extra = [(b"x-request-id", request_id), (b"cache-control", b"no-store")]
                if b"expect" in headers:
                    # Whether the body follows a refusal is the client's choice: the next bytes could be either.
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)
            seen["bytes_out"] += len(message.get("body", b""))

        begun, fault = time.perf_counter(), None
        try:
            await self._app(scope, receive, observed_send)
        except Exception as error:
            fault = error
        finally:
            self._note(scope, headers, request_id, seen, time.perf_counter() - begun, fault)

    def _note(self, scope, headers, request_id, seen, seconds, fault) -> None:
        """One log line, and the counters."""
        route = scope["path"] if scope["path"] in self._routes else "other"
        status = LEFT if seen["status"] is None or scope.get("left") else seen["status"]
        announced = headers.get(b"content-length", b"")
        self._figures.requests.labels(route, status).inc()
        self._figures.seconds.labels(route).observe(seconds)
        self._figures.sent.inc(seen["bytes_out"])
        fields = {
            "request_id": request_id.decode(),
            "method": scope["method"] if scope["method"] in _METHODS else "other",
            "route": route,
            "status": status,
            "samples": scope.get("samples"),
            "bytes_in": int(announced) if announced.isdigit() and len(announced) < 19 else None,
            "bytes_out": seen["bytes_out"],
            "seconds": round(seconds, 6),
        }
        level = logging.ERROR if fault else logging.INFO
        LOGGER.log(level, "fault" if fault else "request", exc_info=fault, extra={"fields": fields})
