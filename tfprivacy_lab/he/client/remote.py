"""The client of the service: encrypts here, asks there, decrypts here.

A query is sent again after 503 and after a broken connection, and after nothing else: answers to the same query
decrypt to the same logits (CKKS: within its bound), so a repetition does no harm. Waits double from
``FIRST_WAIT_SECONDS`` with full jitter, are never shorter than the service's Retry-After, and all of it ends
with one time limit.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import random
import socket
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, settle
from tfprivacy_lab.he.client.head import Client
from tfprivacy_lab.he.ring.parameters import MAX_MESSAGE_BYTES
from tfprivacy_lab.he.service.openapi import OCTETS

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 20.0
QUIET_SECONDS = 5.0
_LARGEST_PROBLEM = 64 * 1024
_SHOWN = 300
_PART_BYTES = 2**20


def predict(
    client: Client, service: Service, features, feature_range=None, compress: bool = False, max_error=None
) -> np.ndarray:
    """Logits of features that the service never sees.

    Args:
        client: Holds the keys.
        service: Where the head is.
        features: Finite real numbers, shape (samples, d).
        feature_range: A public bound on all magnitudes, or one a column, as in :meth:`Client.encrypt
            <tfprivacy_lab.he.client.head.Client.encrypt>`.
        compress: Fewer bytes each way, as there.
        max_error: As in :meth:`Client.decrypt <tfprivacy_lab.he.client.head.Client.decrypt>`.

    Returns:
        float64, shape (samples, classes).

    Raises:
        InputError: naming what is wrong with the features, the URL, or the service's answer.

    Guarantee: the reply answers this very query, by its ids; damage is found by its digest.

    Not covered: whether it was computed with the right head, and who computed it, unless TLS says so.
    """
    return predict_with_bound(client, service, features, feature_range, compress, max_error)[0]


def predict_with_bound(
    client: Client, service: Service, features, feature_range=None, compress: bool = False, max_error=None
) -> tuple[np.ndarray, float]:
    """The same with the bound on a logit's error that follows from the reply."""
    query = client.encrypt(features, feature_range, compress=compress)
    reply, name = service.evaluate(query), f"the answer of {service.url}"
    return client.decrypt(reply, query, name, max_error), client.error_bound(reply, name)


@dataclasses.dataclass(frozen=True)
class Service:
    """A service to ask.

    Args:
        url: ``http://HOST:PORT`` or ``https://...``, with a path before ``/v1`` if there is one.
        certificate_authority: PEM file with the certificates to trust instead of the system's, or None.
        seconds: For everything together: connecting, waiting, trying again.
        on_wait: Called with a line of text before a wait, once ``QUIET_SECONDS`` have passed.

    Raises:
        InputError: naming the URL, the file or the limit.
    """

    url: str
    certificate_authority: str | None = None
    seconds: float = 60.0
    on_wait: Callable[[str], None] | None = None
    _random: random.Random = dataclasses.field(default_factory=random.SystemRandom, repr=False, compare=False)

    def __post_init__(self):
        settle(self, seconds=check_finite_number("seconds", self.seconds, above=0, at_most=86_400))
        _split(self.url)
        if self.certificate_authority is not None:
            self._context()

    def evaluate(self, query: bytes) -> bytes:
        """The reply to a query, asked for again while that makes sense.

        Args:
            query: What the client encrypted.

        Returns:
            The body of the answer, not yet checked.

        Raises:
            InputError: if the service refuses it, answers something else, or time runs out.
        """
        begun = time.monotonic()
        deadline = begun + self.seconds
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return self._ask(query, deadline)
            except _PassingError as failure:
                pause = max(self._random.uniform(0, wait), failure.after)
                if time.monotonic() + pause >= deadline:
                    raise InputError(
                        f"Cannot get an answer from {self.url} within seconds={self.seconds:g}: {failure}; "
                        "try again later, or allow more time."
                    ) from failure
                if self.on_wait is not None and time.monotonic() - begun > QUIET_SECONDS:
                    self.on_wait(f"{self.url}: {failure}; trying again in {pause:.1f} s")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _ask(self, query: bytes, deadline: float) -> bytes:
        """One try. Whatever it waits for, a timer ends it at the deadline."""
        remaining = max(deadline - time.monotonic(), 0.001)
        connection = self._connection(remaining)
        # A socket's own timeout starts again with every byte that trickles in.
        timer = threading.Timer(remaining, _cut, [connection])
        timer.daemon = True
        timer.start()
        try:
            path = _split(self.url)[3] + "/v1/evaluate"
            headers = {"Content-Type": OCTETS, "Accept": OCTETS, "X-Request-ID": uuid.uuid4().hex}
            connection.request("POST", path, query, headers)
            response = connection.getresponse()
            return self._answer(response, headers["X-Request-ID"])
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"Cannot trust {self.url}: {_line(error.verify_message)}; name the certificate authority's file, "
                "or ask who runs the service."
            ) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise _PassingError(_line(error.reason or error)) from error
        except ssl.SSLError as error:
            raise InputError(f"Cannot speak TLS with {self.url}: {_line(error.reason or error)}.") from error
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise _PassingError(_line(error.strerror)) from error
            raise InputError(f"Cannot find the host of url={self.url!r}: {_line(error.strerror)}.") from error
        except (OSError, http.client.IncompleteRead, http.client.RemoteDisconnected, AttributeError) as error:
            # AttributeError: http.client meets a connection that the timer has closed.
            if isinstance(error, AttributeError) and not timer.finished.is_set():
                raise
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise _PassingError(_line(reason)) from error
        except http.client.HTTPException as error:
            raise InputError(
                f"Expected {self.url} to speak HTTP, got something else ({type(error).__name__}: {_line(error)})."
            ) from error
        finally:
            timer.cancel()
            connection.close()

    def _answer(self, response: http.client.HTTPResponse, request_id: str) -> bytes:
        """The body of a 200; every other status as an error."""
        status = response.status
        if status == 200:
            return _read(response, MAX_MESSAGE_BYTES + _LARGEST_PROBLEM, self.url)
        detail = _problem(response)
        if status == 503:
            raise _PassingError(f"503, {detail}", _retry_after(response.headers.get("Retry-After")))
        if 300 <= status < 400:
            place = _line(response.headers.get("Location", "elsewhere"))
            raise InputError(f"{self.url} answers {status}: it points to {place}; name that URL if you trust it.")
        raise InputError(f"{self.url} refuses the query with {status}: {detail} (request {request_id})")

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        scheme, host, port, _ = _split(self.url)
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=seconds)
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._context())

    def _context(self) -> ssl.SSLContext:
        """The system's certificates, or those of the file named."""
        authority = self.certificate_authority
        try:
            return ssl.create_default_context(cafile=authority)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise InputError(f"Cannot use certificate authority {authority}: {reason}; give a PEM file.") from error


class _PassingError(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, text: str, after: float = 0.0):
        super().__init__(text)
        self.after = after


def _split(url: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path of the service's URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
        usable = scheme in ("http", "https") and host and port != 0 and url.isascii() and url.isprintable()
    except ValueError:
        usable = False
    if not usable or " " in url or parts.query or parts.fragment or "@" in parts.netloc:
        raise InputError(f"Expected url to be http://HOST:PORT or https://HOST:PORT, without a user, got url={url!r}.")
    return scheme, host, port, parts.path.rstrip("/")


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection under whoever waits for it."""
    if connection.sock is not None:
        try:
            connection.sock.shutdown(2)
        except OSError:
            connection.close()


def _read(response: http.client.HTTPResponse, limit: int, url: str) -> bytes:
    """The whole body, if it keeps to the limit."""
    parts, got = [], 0
    while part := response.read(_PART_BYTES):
        parts.append(part)
        got += len(part)
        if got > limit:
            raise InputError(f"Expected an answer of at most {limit} bytes from {url}, got more.")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _problem(response: http.client.HTTPResponse) -> str:
    """What the service says is wrong: one printable line, whatever it sent."""
    try:
        value = json.loads(response.read(_LARGEST_PROBLEM))
        detail = value["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = response.reason
    return _line(detail) or "no reason given"


def _line(text) -> str:
    """Somebody else's text, fit to be shown: one line, no control characters, not too long."""
    line = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


def _retry_after(text: str | None) -> float:
    """Seconds of a Retry-After header: a whole number or a date; 0 if it is neither."""
    if text is None:
        return 0.0
    if text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
