"""The client of the service: what it asks again for, what it refuses, and the command."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.he.services import make_certificate, make_head, serving
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client import remote

pytestmark = pytest.mark.processes


class Script:
    """A server that gives one prepared answer a connection, then none."""

    def __init__(self, *answers, keep_open=0.0):
        self._answers, self._keep_open, self.requests = list(answers), keep_open, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.close()

    def _run(self):
        for answer in self._answers:
            with contextlib.suppress(OSError):
                connection, _ = self._socket.accept()
                with connection:
                    self.requests.append(_request(connection))
                    for part in answer if isinstance(answer, list) else [answer]:
                        connection.sendall(part)
                        threading.Event().wait(self._keep_open)


def _request(connection):
    """One whole request, as bytes."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(2**16)
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    while len(body) < size:
        body += connection.recv(2**16)
    return head, body


def answer(status, body=b"", **headers):
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem(status, detail, **headers):
    return answer(status, json.dumps({"detail": detail}).encode(), **headers)


@pytest.fixture
def pauses(monkeypatch):
    """Waits are noted, not waited."""
    noted = []
    monkeypatch.setattr(remote.time, "sleep", noted.append)
    return noted


def test_the_limit_is_kept_as_a_number():
    assert type(remote.Service("http://127.0.0.1:1", seconds=np.array(5)).seconds) is float


def test_after_503_and_broken_connections_the_same_query_is_asked_again(pauses):
    cut = answer(200, b"12345")[:-2]
    with Script(problem(503, "busy", Retry_After=1), b"", cut, answer(200, b"reply")) as script:
        assert remote.Service(script.url).evaluate(b"query") == b"reply"
    assert [body for _, body in script.requests] == [b"query"] * 4
    assert len({head for head, _ in script.requests}) == 4  # another request id each
    assert len(pauses) == 3
    assert pauses[0] >= 1
    assert 0 <= pauses[1] <= 2 * remote.FIRST_WAIT_SECONDS
    assert 0 <= pauses[2] <= 4 * remote.FIRST_WAIT_SECONDS


def test_waits_double_up_to_a_limit_with_full_jitter(pauses):
    class Longest:
        def uniform(self, low, high):
            assert low == 0
            return high

    with Script(*[problem(503, "busy")] * 9, answer(200, b"reply")) as script:
        remote.Service(script.url, seconds=1000, _random=Longest()).evaluate(b"query")
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 16, 20, 20]


def test_a_retry_after_beyond_the_time_limit_is_not_waited_for(pauses):
    with Script(problem(503, "busy", Retry_After=999)) as script, pytest.raises(InputError, match="503, busy"):
        remote.Service(script.url, seconds=5).evaluate(b"query")
    assert pauses == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("soon", 0),
        ("-1", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("9" * 40, 0),
        ("²", 0),
        (None, 0),
    ],
)
def test_retry_after(text, seconds):
    assert remote._retry_after(text) == seconds


def test_retry_after_as_a_date():
    moment = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert remote._retry_after(moment) == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    ("given", "naming"),
    [
        (problem(422, "Expected query of 6 features\x1b[2J\n, got 7."), r"422: Expected query of 6 features\?\[2J"),
        (problem(500, "x" * 5000), "500: x{300}\\.\\.\\."),
        (answer(404, b"<html>"), "404: Words"),
        (answer(422, b"[1]"), "422: Words"),
        (answer(422, b"[" * 60_000), "422: Words"),
        (answer(504, b"\xff"), "504: Words"),
        (answer(302, Location="http://elsewhere/"), "points to http://elsewhere/"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "to speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", "to speak HTTP"),
        (b"HTTP/1.1 ab0 OK\r\n\r\n", "to speak HTTP"),
    ],
    ids=["escape", "long", "html", "list", "deep", "binary", "redirect", "ssh", "header", "status"],
)
def test_everything_else_is_refused_at_once(pauses, given, naming):
    with Script(given) as script, pytest.raises(InputError, match=naming) as refused:
        remote.Service(script.url).evaluate(b"query")
    assert str(refused.value).isprintable()
    assert (len(script.requests), pauses) == (1, [])


def test_an_answer_without_end_is_cut_off(monkeypatch, pauses):
    monkeypatch.setattr(remote, "MAX_MESSAGE_BYTES", 10)
    monkeypatch.setattr(remote, "_LARGEST_PROBLEM", 10)
    with Script(answer(200, bytes(100))) as script, pytest.raises(InputError, match="at most 20 bytes"):
        remote.Service(script.url).evaluate(b"query")


@pytest.mark.parametrize(
    "parts",
    [[b""], [b"HTTP/1.1 2"], [b"x"] * 50, [answer(200, bytes(50))[:40], *[b"x"] * 50]],
    ids=["nothing", "half a line", "a line without end", "a body without end"],
)
def test_a_server_that_stalls_or_trickles_is_left_at_the_time_limit(parts):
    with Script(parts, keep_open=0.1) as script:
        if len(parts) == 1:
            script._keep_open = 30
        with pytest.raises(InputError, match=r"within seconds=0.6|to speak HTTP"):
            remote.Service(script.url, seconds=0.6).evaluate(b"query")


def test_a_handshake_that_is_cut_is_tried_again(pauses):
    """As by a service that makes place for others."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def cut():
            for _ in range(3):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(2**16)

        thread = threading.Thread(target=cut, daemon=True)
        thread.start()
        service = remote.Service(f"https://127.0.0.1:{listening.getsockname()[1]}", seconds=3)
        with pytest.raises(InputError, match="within seconds=3"):
            service.evaluate(b"query")
        thread.join(10)
    assert len(pauses) >= 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "ftp://h",
        "http://",
        "http://user:word@h",
        "http://h:0",
        "http://h:99999",
        "http://h/?q",
        "http://h/#f",
        "http://h /",
        "http://h\n",
        "http://[::1",
        "http://ä",
    ],
)
def test_bad_urls_are_refused(url):
    with pytest.raises(InputError, match="url="):
        remote.Service(url)


def test_an_unknown_host_is_refused_at_once(pauses):
    with pytest.raises(InputError, match=r"nothing\.invalid"):
        remote.Service("http://nothing.invalid", seconds=5).evaluate(b"query")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def head(folder):
    return make_head(folder / "head.npz")


def predict(url, keys, features, out, *options):
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "predict", "--url", url, "--keys", keys]
    command += ["--features", features, "--out", out, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=False)


def test_predict_gives_the_logits(folder, head, client):
    kernel, bias = head
    features = np.random.default_rng(4).uniform(-1, 1, size=(5, 6))
    np.save(folder / "x.npy", features)
    keys = folder / f"{client.scheme}.keys"
    client.save(keys)
    with serving(folder, folder / "head.npz") as running:
        done = predict(running.url + "/", keys, folder / "x.npy", folder / "logits.npy", "--feature-range", 1)
        assert (done.returncode, done.stderr) == (0, "")
        query = client.encrypt(features, 1.0)
        reply = remote.Service(running.url).evaluate(query)
        local = client.decrypt(he.Server(kernel, bias).evaluate(query), query)
    got = np.load(folder / "logits.npy")
    if client.scheme == "bfv":
        np.testing.assert_array_equal(got, local)
        np.testing.assert_array_equal(client.decrypt(reply, query), local)
    np.testing.assert_allclose(got, features @ kernel + bias, atol=0.05)


def test_tls_is_verified(folder, head, bfv_client):
    certificate, key = make_certificate(folder)
    wrong, _ = make_certificate(folder, "elsewhere")
    query = bfv_client.encrypt(np.ones((1, 6)))
    with serving(folder, folder / "head.npz", "--certificate", certificate, "--private-key", key) as running:
        assert bfv_client.decrypt(remote.Service(running.url, str(certificate)).evaluate(query), query).shape == (1, 3)
        for authority in (None, str(wrong)):
            with pytest.raises(InputError, match="Cannot trust"):
                remote.Service(running.url, authority).evaluate(query)
        plain = remote.Service(running.url.replace("https", "http"), seconds=2)
        with pytest.raises(InputError):
            plain.evaluate(query)
    with serving(folder, folder / "head.npz") as running:
        service = remote.Service(running.url.replace("http", "https"), str(certificate))
        with pytest.raises(InputError, match="Cannot speak TLS"):
            service.evaluate(query)


def test_what_cannot_be_predicted_is_refused_in_one_line(folder, head, bfv_client):
    keys, features = folder / "refused.keys", folder / "six.npy"
    bfv_client.save(keys)
    np.save(features, np.ones((2, 6)))
    np.save(folder / "seven.npy", np.ones((2, 7)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    other = he.Server(*head).evaluate(he.Client.generate("bfv").encrypt(np.ones((2, 6))))
    garbage, foreign = Script(answer(200, b"garbage")), Script(answer(200, other))
    with serving(folder, folder / "head.npz") as running, garbage, foreign:
        cases = [
            ((nobody, keys, features, "--seconds", 1), "refused"),
            (("nowhere", keys, features), "url="),
            ((running.url + "/path", keys, features), "404"),
            ((running.url, keys, folder / "seven.npy"), "6 features"),
            ((running.url, folder / "none", features), "none"),
            ((running.url, keys, features, "--seconds", 0), "seconds"),
            ((running.url, keys, features, "--certificate-authority", keys), "refused.keys"),
            ((garbage.url, keys, features), garbage.url),
            ((foreign.url, keys, features), "another key"),
        ]
        for (url, key, data, *options), naming in cases:
            done = predict(url, key, data, folder / "new.npy", *options)
            assert (done.returncode, done.stdout) == (2, ""), (naming, done.stderr)
            assert done.stderr.count("\n") == 1, done.stderr
            assert naming in done.stderr, (naming, done.stderr)
            assert not (folder / "new.npy").exists()
