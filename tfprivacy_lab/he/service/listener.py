"""The service on a socket: uvicorn, with the limits on connections that an application cannot see.

uvicorn reads and writes; this module adds what it leaves open: a cap on connections that counts from their acceptance
on, a deadline for clients that connect and say nothing (half a handshake, half a head), one for clients that leave an
answer unread, and TLS files that are checked before anything listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import ssl
import time
import warnings
from asyncio import sslproto

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tfprivacy_lab.checks import InputError, PrecisionWarning, check_positive_int
from tfprivacy_lab.he.service.admission import Limits
from tfprivacy_lab.he.service.app import make_app
from tfprivacy_lab.he.service.connections import Connections, descriptors_for, listen
from tfprivacy_lab.he.service.metrics import LOGGER, JsonLines, Observed, Quota
from tfprivacy_lab.he.service.openapi import PROBLEM_TYPE, REFUSALS

_KEEP_ALIVE_SECONDS = 5
_WATCH_SECONDS = 0.5
_LARGEST_HEAD_BYTES = 16 * 1024
_TLS_BUFFER_BYTES = 32 * 1024
"""Read at a time; asyncio's 256 KiB for every connection that has yet said nothing would be the largest part of it."""


def serve(
    kernel,
    bias,
    *,
    host: str,
    port: int,
    limits: Limits,
    certificate=None,
    private_key=None,
    on_ready,
    replies: str = "sanitized",
    feature_range=None,
) -> dict:
    """Answer queries until SIGTERM or SIGINT; then finish what is in flight.

    Args:
        kernel, bias: The head, as :class:`~tfprivacy_lab.he.server.head.Server` takes it.
        host: Name or address to listen on.
        port: Port, 0 for a free one.
        limits: What to take on.
        certificate: PEM file with the certificate chain, or None for plain HTTP.
        private_key: PEM file with its key, not encrypted; None if the certificate's file holds it.
        on_ready: Called with the URL once connections are taken.
        replies: "sanitized" refuses queries whose replies would give the head away; "any" answers them too.
        feature_range: The one public range that queries must be encrypted with, or None for any.

    Returns:
        ``url`` and the number of ``requests`` that were answered.

    Raises:
        InputError: naming the head, the address or the TLS file.
    """
    check_positive_int("port", port, at_least=0, at_most=65535)
    context = _tls_context(certificate, private_key)
    app = make_app(kernel, bias, limits, replies, feature_range)
    with listen(host, port) as listening, _logging_to_stderr(), warnings.catch_warnings():
        # Which steps a query asks for is its client's matter, who is told with the reply's error bound.
        warnings.simplefilter("ignore", PrecisionWarning)
        refusal = b"" if context else _refusal(503, "Too many connections; try again later.", "Retry-After: 1\r\n")
        connections = Connections(
            descriptors_for(limits.max_connections), refusal, lambda reason: app.figures.cut.labels(reason).inc()
        )
        listening.connections = connections
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if context else 'http'}://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            http=_protocol(limits, connections),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=limits.shutdown_seconds,
        )
        config.load()
        config.ssl = context
        server = _Service(config, app, limits, connections, lambda: on_ready(url))
        gc.collect()
        gc.freeze()  # so that looking for what connections leave behind is cheap
        sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
        asyncio.run(server.serve(sockets=[listening]))
        return {"url": url, "requests": server.server_state.total_requests}


class _Service(uvicorn.Server):
    """uvicorn's server, with a clean end on SIGTERM and a watch over idle connections."""

    def __init__(self, config, app: Observed, limits: Limits, connections: Connections, on_ready):
        super().__init__(config)
        self._app, self._limits, self._opened, self._on_ready = app, limits, connections, on_ready

    @contextlib.contextmanager
    def capture_signals(self):
        """End with exit code 0, where uvicorn would raise the signal again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """First signal: finish what is in flight. Second: leave at once."""
        self.force_exit = self.should_exit
        self.should_exit = self._app.admission.draining = True

    async def startup(self, sockets=None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._watch = asyncio.create_task(self._end_idle_connections())
        self._on_ready()

    async def shutdown(self, sockets=None) -> None:
        """Finish what is in flight, under the same watch."""
        await super().shutdown(sockets)
        self._watch.cancel()

    async def _end_idle_connections(self) -> None:
        while True:
            now = time.monotonic()
            self._opened.end_late_handshakes(now, self._limits.header_seconds)
            for connection in list(self.server_state.connections):
                connection.end_if_idle(now)
            await asyncio.sleep(_WATCH_SECONDS)


def _protocol(limits: Limits, opened: Connections) -> type[H11Protocol]:
    """uvicorn's protocol under these limits."""

    class LimitedProtocol(H11Protocol):
        _idle_since: float | None = None

        @property
        def idle_since(self) -> float | None:
            """Since when no request has been answered, or an answer has lain unread; None while one is answered."""
            if self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing():
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = time.monotonic()
            return self._idle_since

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._idle_since = time.monotonic()
            opened.ready(transport, self)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def on_response_complete(self) -> None:
            self._idle_since = time.monotonic()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(_refusal(400, msg))
                self.transport.close()
            else:
                self.transport.abort()

        def shutdown(self) -> None:
            if not self.transport.is_closing():
                super().shutdown()

        def end_if_idle(self, now: float) -> None:
            """Abort when it has been idle for too long."""
            since = self.idle_since
            if since is not None and now - since > limits.header_seconds:
                self.transport.abort()

    return LimitedProtocol


def _refusal(status: int, detail: str, more: str = "") -> bytes:
    """An answer without a request, before the connection ends."""
    value = {"type": "about:blank", "title": REFUSALS[status], "status": status, "detail": detail}
    body = json.dumps(value)
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: {PROBLEM_TYPE}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n{body}".encode()


def _tls_context(certificate, private_key) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with these files; never a question for a passphrase."""
    if certificate is None:
        if private_key is not None:
            raise InputError(f"Expected --certificate beside --private-key {private_key}.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key, password=lambda: "")
    except (OSError, ValueError) as error:
        files = certificate if private_key is None else f"{certificate} with private key {private_key}"
        reason = error.strerror or getattr(error, "reason", None) or error if isinstance(error, OSError) else error
        raise InputError(
            f"Cannot use certificate {files}: {reason}; give PEM files that belong together, the key not encrypted."
        ) from error
    return context


@contextlib.contextmanager
def _logging_to_stderr():
    """The service's log lines as JSON on stderr, while it serves."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    handler.addFilter(Quota())
    loggers = [LOGGER, logging.getLogger("uvicorn.error"), logging.getLogger("asyncio")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO if logger is LOGGER else logging.ERROR)
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
