"""A service in a process of its own, and clients that behave well or badly."""

import contextlib
import dataclasses
import http.client
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tfprivacy_lab import he

OCTETS = {"Content-Type": "application/octet-stream"}


@dataclasses.dataclass
class Running:
    """A service that runs: its address, process and log."""

    url: str
    process: subprocess.Popen
    log: Path

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def evaluate(self, query, **headers):
        return self.ask("POST", "/v1/evaluate", query, OCTETS | headers)

    def metric(self, name):
        """The value of one metric, labels and all."""
        text = self.ask("GET", "/metrics")[2].decode()
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " ")), 0.0)

    def wait_until(self, condition):
        """Until a condition holds; a connection that fails meanwhile is no answer yet."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if condition():
                    return
            threading.Event().wait(0.02)
        raise AssertionError("waited for too long")

    def wait_for(self, name, value):
        """Until a metric has this value."""
        self.wait_until(lambda: self.metric(name) == value)

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def memory(self):
        """Resident bytes."""
        return self.metric("process_resident_memory_bytes")


@contextlib.contextmanager
def serving(folder, head, *options, descriptors=None):
    """A service of this head on a free port, ended with the block; it answers any set unless told otherwise.

    ``descriptors`` are the arguments of ``ulimit`` for it alone: ``-S -n 200`` may be raised by it, ``-n 200`` not.
    """
    options = options if "--replies" in options else (*options, "--replies", "any")
    log = folder / "serve.log"
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "serve", "--head", str(head), "--port", "0", "--json"]
    if descriptors is not None:
        command = ["/bin/sh", "-c", f'ulimit {descriptors} && exec "$@"', "sh", *command]
    with open(log, "wb") as stream:
        process = subprocess.Popen([*command, *map(str, options)], stdout=subprocess.PIPE, stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while b"listening on" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        url = next(line.split()[-1] for line in log.read_text().splitlines() if line.startswith("listening on"))
        yield Running(url, process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make_head(path, features=6, classes=3, seed=1):
    """A head's file; returns its kernel and bias."""
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(features, classes)), rng.normal(size=classes)
    np.savez(path, kernel=kernel, bias=bias)
    return kernel, bias


def make_certificate(folder, name="localhost"):
    """A self-signed certificate for 127.0.0.1 and its key, by openssl."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def head_of(size, more=""):
    """The bytes before a body of ``size`` bytes."""
    return (
        f"POST /v1/evaluate HTTP/1.1\r\nHost: h\r\nContent-Type: application/octet-stream\r\n{more}"
        f"Content-Length: {size}\r\n\r\n"
    ).encode()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


@dataclasses.dataclass
class Load:
    """Clients that ask as fast as they can for some seconds, and clients that misbehave meanwhile.

    Args:
        service: The service.
        samples: (query, exact logits) pairs; each good client takes them in an order of its own.
        client: Decrypts every accepted reply (one of the same bytes once).
    """

    service: Running
    samples: list
    client: he.Client

    def run(self, seconds, good, bad):
        """Counts by status over all good clients; every 200 is compared with the exact logits."""
        self.until, self.faults, self.counts = time.monotonic() + seconds, queue.Queue(), {}
        self.lock, self.tricks, self.verified = threading.Lock(), {}, set()
        threads = [threading.Thread(target=self._guarded, args=(self._good, number)) for number in range(good)]
        threads += [threading.Thread(target=self._guarded, args=(self._bad, number)) for number in range(bad)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.faults.empty(), self.faults.get()
        return self.counts

    def _guarded(self, work, number):
        try:
            work(number)
        except BaseException as error:
            self.faults.put(error)
            raise

    def _good(self, number):
        """One after the other on a kept connection; a reply must be its own query's, to the bit."""
        order = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=60)
        while time.monotonic() < self.until:
            index = order.integers(len(self.samples))
            query = self.samples[index][0]
            name = f"{number}-{order.integers(1 << 30)}"
            connection.request("POST", "/v1/evaluate", query, OCTETS | {"X-Request-ID": name})
            response = connection.getresponse()
            body = response.read()
            assert response.headers["X-Request-ID"] == name
            assert response.status in (200, 503), (response.status, body)
            if response.status == 200:
                self._verify(index, body)
            else:
                assert int(response.headers["Retry-After"]) >= 1
            with self.lock:
                self.counts[response.status] = self.counts.get(response.status, 0) + 1
        connection.close()

    def _verify(self, index, reply):
        """The reply answers this query, and decrypts to the exact logits."""
        if (index, reply) not in self.verified:
            query, logits = self.samples[index]
            with self.lock:
                np.testing.assert_array_equal(self.client.decrypt(reply, query), logits)
            self.verified.add((index, reply))

    def _bad(self, number):
        """Leaves early, sends garbage, stalls; never waits for longer than the test."""
        order = np.random.default_rng(1000 + number)
        tricks = (self._leave_unanswered, self._leave_half_way, self._send_garbage, self._send_noise, self._stall)
        while time.monotonic() < self.until:
            trick = tricks[order.integers(len(tricks))]
            query = self.samples[order.integers(len(self.samples))][0]
            with contextlib.suppress(OSError), contextlib.closing(connect(self.service.port)) as sock:
                trick(sock, query, order)
            with self.lock:
                self.tricks[trick.__name__] = self.tricks.get(trick.__name__, 0) + 1

    def _leave_unanswered(self, sock, query, order):
        sock.sendall(head_of(len(query)) + query)

    def _leave_half_way(self, sock, query, order):
        sock.sendall(head_of(len(query)) + query[: order.integers(len(query))])

    def _send_garbage(self, sock, query, order):
        damaged = bytearray(query)
        damaged[order.integers(len(query))] ^= 1
        sock.sendall(head_of(len(query)) + damaged)
        status = sock.recv(12)
        assert status in (b"HTTP/1.1 422", b"HTTP/1.1 503"), status

    def _send_noise(self, sock, query, order):
        sock.sendall(order.bytes(300) + b"\r\n\r\n")
        sock.recv(100)

    def _stall(self, sock, query, order):
        sock.sendall(head_of(len(query)) + query[:1000])
        sock.settimeout(max(0.1, min(2.0, self.until - time.monotonic())))
        sock.recv(100)
