"""Strangers who hold what they can: the service under each attack, another client beside it, memory and log measured.

By default some seconds each; the slow ones go on for a minute.
"""

import concurrent.futures
import contextlib
import dataclasses
import resource
import select
import socket
import sys
import threading
import time

import numpy as np
import pytest

from tests.he.services import connect, head_of, make_certificate, make_head, serving
from tfprivacy_lab import he
from tfprivacy_lab.he.client import remote
from tfprivacy_lab.he.messages import wire

pytestmark = pytest.mark.processes

MEBIBYTE = 2**20
MAX_BYTES = 128 * MEBIBYTE
ALLOCATOR_BYTES = (32 if sys.version_info < (3, 12) else 40) * MEBIBYTE
"""What the allocator keeps, and buffers of connections: beside the stated bound of what is held."""

TLS_BYTES = MEBIBYTE // 8
"""Buffers of one connection under TLS."""

DURATIONS = [pytest.param(4, id="short"), pytest.param(60, id="minute", marks=pytest.mark.long)]
LIMITS = ["--max-bytes", MAX_BYTES, "--max-body-bytes", 32 * MEBIBYTE, "--workers", 2]
FEATURES, CLASSES = 256, 1000
"""A sample's reply is 4 MB under bfv: 125 products."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    make_head(folder / "head.npz", FEATURES, CLASSES)
    return folder


@pytest.fixture(scope="module")
def sample(folder, bfv_client):
    """A small query, and the exact logits that belong to it."""
    head = np.load(folder / "head.npz")
    query = bfv_client.encrypt(np.random.default_rng(1).uniform(-1, 1, (1, FEATURES)), 1.0)
    server = he.Server(head["kernel"], head["bias"])
    return query, bfv_client.decrypt(server.evaluate(query), query)


def status_bytes(process, name):
    """A figure of the kernel's on a process: VmRSS, VmHWM."""
    with open(f"/proc/{process.pid}/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name + ":"))


@dataclasses.dataclass
class Found:
    """What became of it: the other client's queries, the process and its log."""

    answered: int
    slowest: float
    grown: int
    log: int


def under(attack, running, service, sample, client, seconds, crowd=1):
    """Another client asks while ``attack(until)`` goes on in threads; every answer is exact, or the test fails."""
    query, logits = sample
    np.testing.assert_array_equal(client.decrypt(service.evaluate(query), query), logits)  # prepares the head
    before = status_bytes(running.process, "VmRSS")
    with open(f"/proc/{running.process.pid}/clear_refs", "w") as stream:
        stream.write("5")
    answered, slowest, until = 0, 0.0, time.monotonic() + seconds
    with concurrent.futures.ThreadPoolExecutor(crowd) as pool:
        attackers = [pool.submit(attack, until) for _ in range(crowd)]
        while time.monotonic() < until:
            begun = time.monotonic()
            reply = service.evaluate(query)
            slowest = max(slowest, time.monotonic() - begun)
            np.testing.assert_array_equal(client.decrypt(reply, query), logits)
            answered += 1
            threading.Event().wait(0.2)
        for attacker in attackers:
            attacker.result()
    found = Found(answered, slowest, status_bytes(running.process, "VmHWM") - before, running.log.stat().st_size)
    print(found)
    assert "Traceback" not in running.log.read_text()
    assert running.process.poll() is None
    return found


def check(found, seconds, connections=0):
    assert found.answered >= seconds / 4
    assert found.slowest < 10
    assert found.grown < MAX_BYTES + ALLOCATOR_BYTES + connections * TLS_BYTES
    assert found.log < MEBIBYTE


class Crowd:
    """Connections told ``opening`` and never read; opened again when they end or, without a buffer, are answered."""

    def __init__(self, port, count, opening=b"", receive_buffer=None):
        self._port, self._count, self._opening, self._buffer = port, count, opening, receive_buffer

    def __call__(self, until):
        sockets = []
        while time.monotonic() < until:
            sockets = [sock for sock in sockets if self._open(sock)]
            for _ in range(self._count - len(sockets)):
                with contextlib.suppress(OSError):
                    sockets.append(self._connect())
            threading.Event().wait(0.3)
        for sock in sockets:
            sock.close()

    def _connect(self):
        sock = socket.socket()
        if self._buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        sock.settimeout(5)
        try:
            sock.connect(("127.0.0.1", self._port))
            sock.sendall(self._opening)
        except OSError:
            sock.close()
            raise
        return sock

    def _open(self, sock):
        """Whether it is, as far as can be seen without reading."""
        events = select.POLLRDHUP if self._buffer else select.POLLRDHUP | select.POLLIN
        state = select.poll()
        state.register(sock, events)
        if state.poll(0):
            sock.close()
            return False
        return True


@pytest.mark.parametrize("seconds", DURATIONS)
def test_silent_connections_before_the_handshake(folder, sample, bfv_client, seconds):
    """400 of them, with descriptors for fewer."""
    certificate, key = make_certificate(folder)
    options = [*LIMITS, "--certificate", certificate, "--private-key", key, "--max-connections", 150]
    with serving(folder, folder / "head.npz", *options) as running:
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (256, 256))
        service = remote.Service(running.url, str(certificate), 30)
        found = under(Crowd(running.port, 400), running, service, sample, bfv_client, seconds)
        check(found, seconds, connections=150)
        assert running.stop() == 0


def test_a_handshake_that_stalls_is_ended(folder):
    certificate, key = make_certificate(folder)
    options = ["--certificate", certificate, "--private-key", key, "--header-seconds", 1]
    with serving(folder, folder / "head.npz", *options) as running:
        for opening in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with connect(running.port) as sock:
                sock.settimeout(10)
                sock.sendall(opening)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
        assert "handshake" in running.log.read_text()


def test_the_limit_of_descriptors_is_raised_as_far_as_it_may_be(folder, sample):
    with serving(folder, folder / "head.npz", *LIMITS, "--max-connections", 100, descriptors="-S -n 120") as running:
        assert resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)[0] == 100 + 64
        assert running.evaluate(sample[0])[0] == 200
        assert "connections limited" not in running.log.read_text()


def test_fewer_descriptors_than_connections_are_said_and_kept_to(folder, sample, bfv_client):
    """Of 300 connections that are asked for, 136 beside what else the process has open; 250 come, and stay."""
    with serving(folder, folder / "head.npz", *LIMITS, "--max-connections", 300, descriptors="-n 200") as running:
        assert "connections limited to 136 by the process's file descriptors, not 300" in running.log.read_text()
        found = under(Crowd(running.port, 250), running, remote.Service(running.url, None, 30), sample, bfv_client, 4)
        check(found, 4)
        assert running.stop() == 0


@pytest.mark.parametrize("seconds", DURATIONS)
def test_replies_that_nobody_reads(folder, sample, bfv_client, seconds):
    """Queries of 160 kB whose replies are 20 MB each: six of them would fill all there is."""
    query = bfv_client.encrypt(np.ones((5, FEATURES)), 1.0, "coefficient")
    with serving(folder, folder / "head.npz", *LIMITS) as running:
        attack = Crowd(running.port, 6, head_of(len(query)) + query, receive_buffer=4096)
        found = under(attack, running, remote.Service(running.url, None, 30), sample, bfv_client, seconds)
        check(found, seconds)
        assert running.stop() == 0


@pytest.mark.parametrize("seconds", DURATIONS)
def test_small_queries_of_enormous_replies(folder, sample, bfv_client, seconds):
    """Compressed, and of 20 samples: replies of 82 MB. They are refused by their header, with the limit's name."""
    query = bfv_client.encrypt(np.ones((20, FEATURES)), 1.0, "coefficient", compress=True)
    with serving(folder, folder / "head.npz", *LIMITS) as running:
        refused = []

        def attack(until):
            while time.monotonic() < until:
                status, _, body = running.evaluate(query)
                refused.append((status, b"max_reply_bytes" in body or b"max_bytes" in body))

        service = remote.Service(running.url, None, 30)
        check(under(attack, running, service, sample, bfv_client, seconds, crowd=3), seconds)
        assert set(refused) == {(413, True)}
        assert running.stop() == 0


@pytest.mark.parametrize("seconds", [pytest.param(8, id="short"), DURATIONS[1]])
def test_bodies_that_are_announced_and_never_sent(folder, sample, bfv_client, seconds):
    """More of them than there are places for requests, each announcing the most there may be."""
    with serving(folder, folder / "head.npz", *LIMITS, "--max-requests", 16) as running:
        attack = Crowd(running.port, 40, head_of(32 * MEBIBYTE))
        found = under(attack, running, remote.Service(running.url, None, 6), sample, bfv_client, seconds)
        check(found, seconds)
        assert running.stop() == 0


@pytest.mark.parametrize("seconds", DURATIONS)
def test_bodies_that_stop_short_of_their_last_bytes(folder, bfv_client, seconds):
    """Two bodies of 32 MB fill what there is for bodies; nothing more of them comes."""
    head = make_head(folder / "small.npz", 128, 10)
    query = bfv_client.encrypt(np.random.default_rng(1).uniform(-1, 1, (1, 128)), 1.0)
    sample = query, bfv_client.decrypt(he.Server(*head).evaluate(query), query)
    header, _ = wire.parse(bfv_client.encrypt(np.zeros((1, 128)), 1.0, "batched"), wire.QUERY, "query")
    header = dataclasses.replace(header, samples=8 * 2048)
    start = wire.pack(dataclasses.replace(header, samples=1), bytes(128 * 2**15))[: wire.HEADER_BYTES]
    start = start[:68] + (8 * 2048).to_bytes(8, "little") + start[76:]
    size = header.message_bytes
    limits = ["--max-body-bytes", size, "--max-bytes", 2 * size, "--max-samples", 8 * 2048]
    with serving(folder, folder / "small.npz", *limits) as running:
        attack = Crowd(running.port, 3, head_of(size) + start + bytes(size - len(start) - 1024), receive_buffer=4096)
        found = under(attack, running, remote.Service(running.url, None, 30), sample, bfv_client, seconds)
        check(found, seconds)
        assert found.grown > size // 2  # they were read
        assert running.stop() == 0


LARGE, HEAD_BYTES = (2048, 1000), 150 * MEBIBYTE
"""A head of so many inputs and outputs, and what it takes when prepared under ckks-sanitized."""


@pytest.mark.long
@pytest.mark.parametrize("stated", [False, True])
def test_ever_new_steps_of_a_large_head(tmp_path, stated):
    """Eight who ask for a step each that nobody asked for: memory as stated; and nothing at all if a range is."""
    make_head(tmp_path / "head.npz", *LARGE)
    client, told = he.Client.generate("ckks-sanitized"), []
    query = client.encrypt(np.random.default_rng(0).uniform(-1, 1, (1, LARGE[0])), 1.0)
    header, body = wire.parse(query, wire.QUERY, "query")
    limits = ["--max-bytes", 256 * MEBIBYTE, "--max-reply-bytes", 96 * MEBIBYTE, "--workers", 2]
    with serving(tmp_path, tmp_path / "head.npz", *limits, *(["--feature-range", 1] if stated else [])) as running:
        before = status_bytes(running.process, "VmRSS")

        def attack(number):
            until = time.monotonic() + 45
            for turn in range(number, 2000, 8):
                if time.monotonic() > until:
                    return
                steps = [0] * LARGE[0]
                steps[0], steps[1] = -1 - turn % 200, -(turn // 200)
                forged = wire.pack(dataclasses.replace(header, column_steps=tuple(steps)), body)
                told.append(running.evaluate(forged)[0])

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(attack, range(8)))
        if stated:
            assert set(told) == {422}
            assert running.evaluate(query)[0] == 200
        else:
            assert 200 in told
        grown = status_bytes(running.process, "VmHWM") - before
        # One is kept, one a worker, one in the making with its temporaries.
        assert grown < 256 * MEBIBYTE + (1 + 2 + 1.5) * HEAD_BYTES + ALLOCATOR_BYTES
        assert running.stop() == 0
