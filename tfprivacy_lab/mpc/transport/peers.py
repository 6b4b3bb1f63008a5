"""The connection to one other party: frames of control messages and of the engine's bytes, over TCP or TLS 1.3.

A frame is its length, its kind, a channel, and that many bytes. Control messages are JSON objects; the engine's
bytes are what :mod:`tfprivacy_lab.mpc.transport.relay` carries, and mean nothing here.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time

from tfprivacy_lab.checks import InputError

MAGIC = "tfprivacy_lab.mpc/3"
CONTROL, OPEN, DATA, CLOSE = range(4)
_HEADER = struct.Struct("<IBI")
LARGEST_FRAME, _PIECE = 64 << 20, 1 << 16
# Of what another party sent, so many letters may stand in a line.
SHORT = 300
# A party whose socket takes nothing for so long is gone, whatever its heartbeat would say.
_STUCK_SECONDS = 60.0


class PartyError(InputError):
    """Another party is not there, not who or what was agreed, or gave up; the message is one line.

    What others sent may stand in it, so whatever a terminal would obey is replaced.
    """

    def __init__(self, message: str):
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in message))


class GoneError(PartyError):
    """The other end closed the connection, or its process ended."""


class Peer:
    """One connection; threads may send and receive at the same time.

    Args:
        connection: Connected, and through the handshake if it is TLS.
        name: Who is there, as far as it is known.
    """

    def __init__(self, connection: socket.socket, name: str = "another party"):
        connection.setblocking(False)
        self.connection, self.name = connection, name
        self._sending = threading.Lock()
        # OpenSSL allows one call at a time on a connection; none of them blocks, so none waits long.
        self._calling = threading.Lock()
        self._buffer = bytearray()

    def send(self, **message) -> None:
        """Send one control message.

        Raises:
            OSError: if the other end takes none.
        """
        self.send_frame(CONTROL, 0, json.dumps(message, allow_nan=False).encode())

    def send_frame(self, kind: int, channel: int, body: bytes = b"") -> None:
        """Send one frame, whole.

        Raises:
            OSError: if the other end takes none.
        """
        if not self._sending.acquire(timeout=_STUCK_SECONDS):
            raise TimeoutError(f"{self.name} takes no messages")
        try:
            view = memoryview(_HEADER.pack(len(body), kind, channel) + body)
            while view:
                piece = view[:_PIECE]
                view = view[self._when_ready(self.connection.send, piece, select.POLLOUT, _STUCK_SECONDS) :]
        except TimeoutError:
            # Half a frame is sent: nothing can follow it.
            shut(self.connection)
            raise
        finally:
            self._sending.release()

    def receive(self, seconds: float, largest: int = LARGEST_FRAME) -> dict:
        """The next frame, all of it within ``seconds``, which must be a control message.

        Raises:
            PartyError: if there is none in time, or it is none.
        """
        kind, _, body = self.receive_frame(seconds, largest, whole=True)
        message = self.parse(body) if kind == CONTROL else None
        if message is None:
            raise PartyError(f"{self.name} does not speak {MAGIC}.")
        return message

    def parse(self, body: bytes) -> dict:
        """The control message in a frame.

        Raises:
            PartyError: if it is none.
        """
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise PartyError(f"{self.name} sent what is no message of {MAGIC}.")
        return message

    def receive_frame(self, seconds: float, largest: int = LARGEST_FRAME, *, whole: bool = False):
        """(kind, channel, body) of the next frame.

        Args:
            seconds: How long the other end may be silent; with
            whole: how long the frame may take in all.
            largest: Longest body.

        Raises:
            PartyError: if there is none in time, or it is none.
        """
        end = time.monotonic() + seconds if whole else None
        try:
            length, kind, channel = _HEADER.unpack(self._exactly(_HEADER.size, seconds, end))
            if length > largest or kind > CLOSE:
                raise PartyError(f"{self.name} does not speak {MAGIC}; is it a party at all, and with TLS as here?")
            return kind, channel, self._exactly(length, seconds, end)
        except PartyError:
            raise
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise GoneError(f"{self.name} is gone: its process ended or closed the connection.") from error
        except ssl.SSLError as error:
            raise PartyError(f"{self.name} was refused or refuses: {reason_of(error)}.") from error
        except TimeoutError as error:
            raise PartyError(f"{self.name} fell silent for {seconds:.0f} s.") from error
        except (OSError, ValueError) as error:
            raise GoneError(f"{self.name} is gone: {reason_of(error)}.") from error

    def close(self) -> None:
        """Close the connection; what another thread is sending goes nowhere."""
        shut(self.connection)
        self.connection.close()

    def _exactly(self, count: int, seconds: float, end: float | None) -> bytes:
        while len(self._buffer) < count:
            wait = seconds if end is None else max(0.0, min(seconds, end - time.monotonic()))
            part = self._when_ready(self.connection.recv, _PIECE, select.POLLIN, wait)
            if not part:
                raise GoneError(f"{self.name} is gone: its process ended or closed the connection.")
            self._buffer += part
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _when_ready(self, call, argument, wants: int, seconds: float):
        """What ``call`` returns once the connection is ready for it."""
        while True:
            try:
                with self._calling:
                    return call(argument)
            except ssl.SSLWantReadError:
                wants = select.POLLIN
            except ssl.SSLWantWriteError:
                wants = select.POLLOUT
            except BlockingIOError:
                pass
            except ValueError as error:
                raise ConnectionAbortedError("this end has closed the connection") from error
            waiting = select.poll()
            try:
                waiting.register(self.connection, wants)
            except ValueError as error:
                raise ConnectionAbortedError("this end has closed the connection") from error
            if not waiting.poll(1000 * seconds):
                raise TimeoutError


def shut(connection: socket.socket) -> None:
    """End a connection, so that threads that wait for it go on.

    Not by the method of a TLS socket, which would make it a plain one a moment before: another thread's message would
    go out unencrypted.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def as_party_error(name: str, error: Exception) -> PartyError:
    """What a thread that talks to a party ended by, as the line for whoever waits for it."""
    if isinstance(error, PartyError):
        return error
    return PartyError(f"{name} cannot be talked to: {type(error).__name__} {error}.")


def reason_of(error: Exception) -> str:
    """The system's or OpenSSL's reason in a few words."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
