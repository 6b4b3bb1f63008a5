"""Where parties meet: one listens, one calls, and whoever is no party is sent away without disturbing anybody.

Anyone may connect to a port: a scan, a lost client, a party of another group. Each connection is secured and heard in
a thread of its own, so that a silent one keeps nobody waiting; above a number of them the one that has been silent
for longest is closed. What they were is remembered for the line that says who did not come.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.jobs.job import difference
from tfprivacy_lab.mpc.transport.certificates import LoadedCredentials
from tfprivacy_lab.mpc.transport.peers import LARGEST_FRAME, MAGIC, SHORT, GoneError, PartyError, Peer, reason_of, shut

HELLO_SECONDS = 5.0
# A job with its public weights, over a slow line.
_COMPARING_SECONDS = 60.0
_LARGEST_HELLO = 1 << 16
_MOST_WAITING = 128


class Entrance:
    """A listening port.

    Args:
        address: (host, port) to bind.
        credentials: For TLS, or None.
        welcome: Called, in a thread for each connection, with a secured peer; hears who it is, or raises PartyError for
            a stranger; returns what to call next.

    Raises:
        InputError: if the address cannot be bound.
    """

    def __init__(self, address: tuple[str, int], credentials: LoadedCredentials | None, welcome):
        self._context = None if credentials is None else credentials.server
        self._welcome = welcome
        self._waiting: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        self._strangers, self._last_stranger = 0, ""
        host, port = address
        try:
            # A scope or a name is for the system to resolve.
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=_MOST_WAITING)
        except (OSError, UnicodeError) as error:
            raise InputError(f"Cannot listen at {shown(address)}: {reason_of(error)}.") from error
        threading.Thread(target=self._accept, daemon=True).start()

    def sent_away(self) -> str:
        """What came and was no party, for the end of a line."""
        if not self._strangers:
            return ""
        return f"; {self._strangers} others came and were sent away, the last because {self._last_stranger}"

    def close(self) -> None:
        """Stop listening, and close who has not been welcomed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            shut(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                # Out of descriptors, or the caller has gone again.
                threading.Event().wait(0.02)
                continue
            try:
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()
            except RuntimeError:
                connection.close()  # No more threads: the caller may come again.

    def _hear(self, connection: socket.socket) -> None:
        try:
            go_on = self._welcomed(connection)
        except Exception as error:
            # Whatever a stranger does ends here, without a word on this party's terminal.
            reason = str(error) if isinstance(error, PartyError) else f"of {reason_of(error)}"
            with self._lock:
                self._strangers, self._last_stranger = self._strangers + 1, str(PartyError(reason)).rstrip(".")
            return
        go_on()

    def _welcomed(self, connection: socket.socket):
        """What to call next, once it is known who called; the connection of a stranger is closed."""
        try:
            connection.settimeout(HELLO_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection = secured(self._context, connection, server_side=True)
            self._keep(connection)
            if self._context is not None:
                shake_hands(connection, "someone who called")
            go_on = self._welcome(Peer(connection, "someone who called"))
            with self._lock:
                if connection not in self._waiting:
                    raise GoneError("someone who called waited for too long")
                # From here on it is no stranger, whom this end may send away.
                del self._waiting[connection]
            return go_on
        except BaseException:
            with self._lock:
                self._waiting.pop(connection, None)
            connection.close()
            raise

    def _keep(self, connection: socket.socket) -> None:
        """Remember who waits; the longest silent makes room."""
        with self._lock:
            self._waiting[connection] = None
            oldest = next(iter(self._waiting)) if len(self._waiting) > _MOST_WAITING else None
            if oldest is not None:
                del self._waiting[oldest]
        if oldest is not None:
            shut(oldest)


def call(name: str, address: tuple[str, int], credentials: LoadedCredentials | None, until) -> Peer:
    """A secured connection to a party, as soon as it listens.

    Args:
        name: Who; under TLS its certificate must say so.
        address: (host, port).
        credentials: For TLS, or None.
        until: Called for the time at which to stop trying, on the monotonic clock.

    Raises:
        PartyError: if it does not come, or is another.
    """
    while True:
        try:
            connection = socket.create_connection(address, timeout=2)
            break
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until():
                raise PartyError(f"{name} did not come to {shown(address)} in time.") from error
            threading.Event().wait(0.05)
    try:
        connection.settimeout(HELLO_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if credentials is not None:
            connection = secured(credentials.client, connection, server_hostname=name)
            shake_hands(connection, name)
        return Peer(connection, name)
    except PartyError:
        connection.close()
        raise
    except (OSError, ValueError) as error:
        connection.close()
        raise GoneError(f"{name} ended the connection: {reason_of(error)}.") from error


def secured(context: ssl.SSLContext, connection: socket.socket, **options) -> ssl.SSLSocket:
    """The connection as one end of TLS, before the handshake; it is closed if the other end has ended it already."""
    try:
        return context.wrap_socket(connection, do_handshake_on_connect=False, **options)
    except (OSError, ValueError):
        connection.close()
        raise


def hello_of(peer: Peer, mine: dict) -> dict:
    """Exchange first messages; short, so that both ends may send before either reads.

    Raises:
        PartyError: if the other end speaks otherwise, or refuses.
    """
    tell(peer, magic=MAGIC, **mine)
    theirs = hear(peer, HELLO_SECONDS, _LARGEST_HELLO)
    if theirs.get("magic") != MAGIC:
        raise PartyError(f"{peer.name} does not speak {MAGIC}.")
    return theirs


def hear(peer: Peer, seconds: float, largest: int = LARGEST_FRAME) -> dict:
    """The next message in a hello.

    Raises:
        PartyError: if there is none, or the other end says why it refuses.
    """
    message = peer.receive(seconds, largest)
    if message.get("refused"):
        kind = GoneError if message.get("again") is True else PartyError
        raise kind(f"{peer.name} refuses: {str(message['refused'])[:SHORT]}")
    return message


def tell(peer: Peer, **message) -> None:
    """Send a message in a hello.

    Raises:
        PartyError: if the other end is gone.
    """
    try:
        peer.send(**message)
    except (OSError, ValueError) as error:
        raise GoneError(f"{peer.name} ended the connection: {reason_of(error)}.") from error


def agree(peer: Peer, mine: dict, theirs: dict, job: dict, rows: dict[str, bytes | None]) -> None:
    """Compare what both ends are about to do: their hellos, then their jobs, or else whose rows they hold.

    Raises:
        PartyError: naming what differs, or why either gives up.
    """
    name = peer.name
    # What either has said already decides; both ends see the same, and take the same way.
    if theirs.get("digest") != mine["digest"]:
        raise PartyError(f"{name} runs another job: {_difference_of_jobs(peer, job)}.")
    if theirs.get("refusal"):
        raise PartyError(f"{name} gave up: {str(theirs['refusal'])[:SHORT]}")
    if mine["refusal"]:
        raise PartyError(f"{name} has heard that this party gives up.")
    if theirs.get("code") != mine["code"]:
        raise PartyError(f"{name} compiled other programs from the same job; do versions differ?")
    key = "".join(sorted([mine["nonce"], str(theirs.get("nonce"))])).encode(errors="replace")
    _compare_rows(peer, mine["me"], rows, key)


def _difference_of_jobs(peer: Peer, mine: dict) -> str:
    """The first field in which a peer's job differs; both send theirs while they read the other's."""

    def send() -> None:
        with contextlib.suppress(PartyError):
            tell(peer, job=mine)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    theirs = hear(peer, _COMPARING_SECONDS).get("job")
    sending.join(_COMPARING_SECONDS)
    found = difference(mine, theirs) if isinstance(theirs, dict) else None
    return found or "its digest is of another"


def _compare_rows(peer: Peer, me: str, rows: dict[str, bytes | None], key: bytes) -> None:
    mine = {what: ids and hmac.new(key, ids, hashlib.sha256).hexdigest() for what, ids in rows.items()}
    tell(peer, rows=mine)
    theirs = hear(peer, _COMPARING_SECONDS).get("rows")
    if not isinstance(theirs, dict):
        raise PartyError(f"{peer.name} does not speak {MAGIC}.")
    for what in sorted(mine.keys() & theirs.keys()):
        complaint = row_ids.difference(what, me, mine[what], peer.name, theirs[what])
        if complaint:
            raise PartyError(complaint)


def certified(peer: Peer, name: str) -> None:
    """Under TLS, the certificate must be of the party whose name it says.

    Raises:
        PartyError: if it is not.
    """
    if isinstance(peer.connection, ssl.SSLSocket):
        signed = [value for kind, value in peer.connection.getpeercert().get("subjectAltName", ()) if kind == "DNS"]
        if signed != [name]:
            raise PartyError(f"{name} shows the certificate of {', '.join(signed)}.")


def shake_hands(connection: ssl.SSLSocket, who: str) -> None:
    """Finish the TLS handshake.

    Raises:
        PartyError: if the other end has no certificate of this group.
    """
    try:
        connection.do_handshake()
    except (OSError, ValueError) as error:
        # A busy entrance may have closed the connection; a certificate does not change.
        closed = isinstance(error, ssl.SSLEOFError | ConnectionError)
        raise (GoneError if closed else PartyError)(
            f"{who} has no certificate of this group, or none at all: {reason_of(error)}."
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: ``localhost``, or an address in 127.0.0.0/8 or ::1, and nothing like them."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(address: tuple[str, int]) -> str:
    """host:port, with brackets around an IPv6 host."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
