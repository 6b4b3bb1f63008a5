"""Where parties meet: one listens, one calls, and whoever is no party is sent away without disturbing anybody.

Anyone may connect to a port: a scan, a lost client, a party of another group. Each connection is secured and heard in
a thread of its own, so that a silent one keeps nobody waiting; above a number of them the one that has been silent
for longest is closed. What they were is remembered for the line that says who did not come.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.certificates import LoadedCredentials
from tfprivacy_lab.mpc.peers import LARGEST_FRAME, MAGIC, GoneError, PartyError, Peer, reason_of

HELLO_SECONDS = 5.0
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
        self.strangers, self.last_stranger = 0, ""
        host, port = address
        try:
            # A scope or a name is for the system to resolve.
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=_MOST_WAITING)
        except (OSError, UnicodeError) as error:
            raise InputError(f"Cannot listen at {shown(address)}: {reason_of(error)}.") from error
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and close who has not been welcomed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            _shut(connection)

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
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(HELLO_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._keep(connection)
        try:
            if self._context is not None:
                shake_hands(connection, "someone who called")
            go_on = self._welcome(Peer(connection, "someone who called"))
            with self._lock:
                if connection not in self._waiting:
                    raise GoneError("someone who called waited for too long")
                # From here on it is no stranger, whom this end may send away.
                del self._waiting[connection]
        except PartyError as error:
            with self._lock:
                self.strangers, self.last_stranger = self.strangers + 1, str(error).rstrip(".")
                self._waiting.pop(connection, None)
            connection.close()
            return
        go_on()

    def _keep(self, connection: socket.socket) -> None:
        """Remember who waits; the longest silent makes room."""
        with self._lock:
            self._waiting[connection] = None
            oldest = next(iter(self._waiting)) if len(self._waiting) > _MOST_WAITING else None
            if oldest is not None:
                del self._waiting[oldest]
        if oldest is not None:
            _shut(oldest)


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
    connection.settimeout(HELLO_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if credentials is None:
        return Peer(connection, name)
    connection = credentials.client.wrap_socket(connection, server_hostname=name, do_handshake_on_connect=False)
    try:
        shake_hands(connection, name)
    except PartyError:
        connection.close()
        raise
    return Peer(connection, name)


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
        raise PartyError(f"{peer.name} refuses: {str(message['refused'])[:300]}")
    return message


def tell(peer: Peer, **message) -> None:
    """Send a message in a hello.

    Raises:
        PartyError: if the other end is gone.
    """
    try:
        peer.send(**message)
    except (OSError, ValueError) as error:
        raise PartyError(f"{peer.name} ended the connection: {reason_of(error)}.") from error


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


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
