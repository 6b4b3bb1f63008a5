"""The service on real sockets: exact answers, refusals, shedding, clients that misbehave, and its end."""

import concurrent.futures
import contextlib
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pytest

from tests.he.services import OCTETS, Load, Running, connect, head_of, make_certificate, make_head, serving
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError, PrecisionWarning
from tfprivacy_lab.he.client import remote
from tfprivacy_lab.he.service.admission import Limits
from tfprivacy_lab.he.service.app import make_app
from tfprivacy_lab.he.service.openapi import REFUSALS

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def head(folder):
    """(file, server of the same head in this process)."""
    return folder / "head.npz", he.Server(*make_head(folder / "head.npz"))


@pytest.fixture(scope="module")
def service(folder, head):
    limits = ["--max-body-bytes", 2**21, "--max-bytes", 2**24, "--body-seconds", 1, "--header-seconds", 1]
    with serving(folder, head[0], *limits) as running:
        yield running


@pytest.fixture(scope="module")
def samples(head, bfv_client):
    """Distinct queries with the exact logits that belong to them."""
    rng, made = np.random.default_rng(2), []
    for count in (1, 2, 3, 5, 8, 2049):
        query = bfv_client.encrypt(rng.uniform(-1, 1, size=(count, 6)), 1.0)
        made.append((query, bfv_client.decrypt(head[1].evaluate(query), query)))
    return made


def problem(answer, status):
    """The detail of a well-formed problem."""
    got, headers, body = answer
    value = json.loads(body)
    assert (got, value["status"], headers["Content-Type"]) == (status, status, "application/problem+json"), value
    assert set(value) == {"type", "title", "status", "detail"}
    assert "\n" not in value["detail"]
    return value["detail"]


def test_answers_are_exact_for_both_schemes(service, head, client):
    features = np.random.default_rng(3).normal(size=(7, 6))
    query = client.encrypt(features)
    status, headers, reply = service.evaluate(query)
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    expected = client.decrypt(head[1].evaluate(query), query)
    if client.scheme == "bfv":
        np.testing.assert_array_equal(client.decrypt(reply, query), expected)
    np.testing.assert_allclose(client.decrypt(reply, query), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 64])
def test_a_well_formed_request_id_is_repeated_and_logged(service, name):
    assert service.ask("GET", "/healthz", headers={"X-Request-ID": name})[1]["X-Request-ID"] == name
    service.wait_until(lambda: f'"request_id": "{name}"' in service.log.read_text())  # written after the answer
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line.get("request_id") == name)
    assert (line["method"], line["route"], line["status"]) == ("GET", "/healthz", 200)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, 'a"}', "ä"])
def test_another_request_id_is_replaced(service, name):
    made = service.ask("GET", "/healthz", headers={"X-Request-ID": name.encode("latin-1")})[1]["X-Request-ID"]
    assert made != name
    assert len(made) == 32


def test_every_request_is_logged_without_its_body(folder, head, samples):
    with serving(folder, head[0]) as running:
        running.evaluate(samples[0][0])
        running.evaluate(b"TFPLABHE secret-in-a-body")
        running.ask("GET", "/secret-in-a-path?secret-in-a-query")
        assert running.stop() == 0
        text = running.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/evaluate", 200),
        ("/v1/evaluate", 422),
        ("other", 404),
    ]
    assert lines[0]["bytes_in"] == len(samples[0][0])
    assert "secret" not in text


def test_bad_queries_are_refused_and_named(service, bfv_client, samples):
    query = samples[0][0]
    damaged = bytearray(query)
    damaged[len(query) // 2] ^= 8
    assert "digest" in problem(service.evaluate(bytes(damaged)), 422)
    assert "truncated" in problem(service.evaluate(query[:-1]), 422)
    assert "6" in problem(service.evaluate(bfv_client.encrypt(np.ones((1, 7)))), 422)
    assert "keep it secret" in problem(service.evaluate(bfv_client.to_bytes()), 422)
    problem(service.evaluate(b""), 422)


def test_requests_that_are_none_are_refused(service):
    assert "2097152" in problem(service.evaluate(bytes(2**21 + 1)), 413)
    problem(service.ask("POST", "/v1/evaluate", b"x", {"Content-Type": "text/plain"}), 415)
    problem(service.ask("POST", "/v1/evaluate", iter([b"x"]), OCTETS), 411)
    problem(service.ask("GET", "/v1/evaluate"), 405)
    problem(service.ask("POST", "/healthz", b"x"), 405)
    problem(service.ask("GET", "/v1/heads"), 404)
    problem(service.ask("GET", "/v1/head/"), 404)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /v1/evaluate HTTP/1.1\r\n\r\n",
        head_of("-5"),
        head_of("5x"),
        head_of(5, "Content-Length: 6\r\n"),
        head_of(5, "Transfer-Encoding: chunked\r\n"),
        b"GET /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 20_000,
        b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 20_000,
    ],
    ids=[
        "tls",
        "no host",
        "negative",
        "no number",
        "two lengths",
        "two ways",
        "two ways, another route",
        "long path",
        "long header",
    ],
)
def test_what_is_no_http_gets_400_and_the_end_of_the_connection(service, request_bytes):
    with connect(service.port) as sock:
        sock.sendall(request_bytes)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        problem((answer.status, answer.headers, answer.read()), 400)
        assert sock.recv(1) == b""
    assert service.ask("GET", "/healthz")[0] == 200


def test_stalled_bodies_and_heads_are_ended(service):
    with connect(service.port) as body, connect(service.port) as half, connect(service.port) as silent:
        body.sendall(head_of(1000) + b"x" * 10)
        half.sendall(b"POST /v1/eval")
        answer = http.client.HTTPResponse(body)
        answer.begin()
        assert "10 of 1000" in problem((answer.status, answer.headers, answer.read()), 408)
        for sock in (half, silent):
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""


def test_a_body_longer_than_announced_is_no_part_of_the_query(service, samples, bfv_client):
    query, logits = samples[0]
    with connect(service.port) as sock:
        sock.sendall(head_of(len(query)) + query + b"GARBAGE\r\n\r\n")
        stream = b"".join(iter(lambda: sock.recv(2**16), b""))
    head, _, rest = stream.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    size = int(next(line for line in head.split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    np.testing.assert_array_equal(bfv_client.decrypt(rest[:size], query), logits)
    assert rest[size:].startswith(b"HTTP/1.1 400")


class KeptReader(io.BufferedReader):
    """One buffer for all answers on a connection: closing an answer leaves it open, with what it has read ahead."""

    def close(self):
        pass


def test_pipelined_queries_are_answered_in_order(service, samples, bfv_client):
    with connect(service.port) as sock:
        sender = threading.Thread(
            target=lambda: [sock.sendall(head_of(len(query)) + query) for query, _ in samples[:4]]
        )
        sender.start()
        reader = KeptReader(socket.SocketIO(sock, "rb"))
        for query, logits in samples[:4]:
            answer = http.client.HTTPResponse(types.SimpleNamespace(makefile=lambda mode: reader))
            answer.begin()
            np.testing.assert_array_equal(bfv_client.decrypt(answer.read(), query), logits)
        sender.join()


def test_a_client_that_waits_for_100_continue(service, samples):
    query = samples[0][0]
    with connect(service.port) as sock:
        sock.sendall(head_of(len(query), "Expect: 100-continue\r\n"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(query)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
    with connect(service.port) as sock:
        sock.sendall(head_of(2**30, "Expect: 100-continue\r\n"))
        assert sock.recv(12) == b"HTTP/1.1 413"


def test_the_description_fits_the_routes(service):
    described = json.loads(service.ask("GET", "/openapi.json")[2])
    assert described["openapi"].startswith("3.1")
    app = make_app(np.ones((6, 3)))
    routes = {route.path: {method.lower() for method in route.methods} - {"head"} for route in app.routes}
    assert {path: set(item) for path, item in described["paths"].items()} == routes
    for path, item in described["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            assert all(response["description"] for response in operation["responses"].values())
            if path != "/v1/evaluate":
                status, headers, _ = service.ask("GET", path)
                assert headers["Content-Type"].partition(";")[0] in operation["responses"][str(status)]["content"]
    assert set(described["paths"]["/v1/evaluate"]["post"]["responses"]) == {"200", *map(str, REFUSALS)}
    names = set(described["components"]["schemas"])
    text = json.dumps(described)
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names


def test_head_health_and_metrics(service):
    shape = json.loads(service.ask("GET", "/v1/head")[2])
    assert shape == {
        "features": 6,
        "classes": 3,
        "max_body_bytes": 2**21,
        "max_reply_bytes": 2**26,
        "max_samples": 4096,
        "max_requests": 64,
    }
    assert json.loads(service.ask("GET", "/readyz")[2]) == {"status": "ready"}
    before = service.metric('he_requests_total{route="/healthz",status="200"}')
    service.ask("GET", "/healthz")
    assert service.metric('he_requests_total{route="/healthz",status="200"}') == before + 1
    assert service.metric("he_requests_in_flight") == service.metric("he_bytes_in_flight") == 0


@pytest.mark.parametrize(("stated", "shown"), [("1", 1.0), ("1,1,1,1,1,1e-12", [1, 1, 1, 1, 1, 1e-12])])
def test_a_service_that_states_its_range_takes_no_other(folder, head, bfv_client, stated, shown):
    """And a row of its head that rounds to nothing is the client's matter, not a line in the log for each query."""
    rows = np.full((1, 6), 1e-3) * np.array(shown)
    with serving(folder, head[0], "--feature-range", stated) as running:
        assert json.loads(running.ask("GET", "/v1/head")[2])["feature_range"] == shown
        query = bfv_client.encrypt(rows, shown)
        status, _, reply = running.evaluate(query)
        assert status == 200
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrecisionWarning)
            same = [bfv_client.decrypt(head[1].evaluate(query), query) for _ in range(2)]
        assert len(caught) == 2 * isinstance(shown, list)
        np.testing.assert_array_equal(bfv_client.decrypt(reply, query), same[0])
        for other in (2.0, 1.0 if isinstance(shown, list) else [1, 1, 1, 1, 1, 0.1]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PrecisionWarning)
                query = bfv_client.encrypt(rows, other)
            assert "encrypt with its feature_range" in problem(running.evaluate(query), 422)
        assert "kernel round" not in running.log.read_text()


def test_samples_are_counted_in_answer_metrics_and_log(folder, head, samples, bfv_client):
    """And limited in one query, whatever its packing: 65 of them may be all that a head is worth."""
    with serving(folder, head[0], "--max-samples", 64) as running:
        for query, wanted in ((samples[1][0], "2"), (samples[4][0], "8")):
            status, headers, _ = running.evaluate(query)
            assert (status, headers["X-Samples"]) == (200, wanted)
        for packing in ("coefficient", "batched"):
            many = bfv_client.encrypt(np.zeros((65, 6)), 1.0, packing)
            assert "64 samples (max_samples), got 65" in problem(running.evaluate(many), 413)
        assert running.metric("he_samples_total") == 10
        assert running.stop() == 0
        lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    assert [line["samples"] for line in lines if line["route"] == "/v1/evaluate"] == [2, 8, None, None]


def test_only_sanitised_replies_are_given_unless_others_are_asked_for(folder, head, samples, bfv_sanitized_client):
    query = bfv_sanitized_client.encrypt(np.ones((1, 6)), 1.0)
    log = folder / "default.log"
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "serve", "--head", head[0], "--port", "0", "--json"]
    with open(log, "wb") as stream:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=stream)
    try:
        running = Running("", process, log)
        running.wait_until(lambda: "listening on" in log.read_text())
        running.url = next(line.split()[-1] for line in log.read_text().splitlines() if line.startswith("listening on"))
        assert "make keys with a sanitized scheme" in problem(running.evaluate(samples[0][0]), 422)
        assert running.evaluate(query)[0] == 200
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_is_too_much_is_shed_and_the_rest_answered(folder, head, samples, bfv_client):
    query, logits = samples[0]
    with serving(folder, head[0], "--max-requests", 2, "--body-seconds", 30) as running:
        with connect(running.port) as first, connect(running.port) as second:
            for sock in (first, second):
                sock.sendall(head_of(len(query)) + query[:100])
            running.wait_for("he_requests_in_flight", 2)
            status, headers, body = running.evaluate(query)
            assert "requests" in problem((status, headers, body), 503)
            assert int(headers["Retry-After"]) >= 1
            assert running.ask("GET", "/readyz")[0] == 503
            assert running.ask("GET", "/healthz")[0] == 200
            for sock in (first, second):
                sock.sendall(query[100:])
                answer = http.client.HTTPResponse(sock)
                answer.begin()
                np.testing.assert_array_equal(bfv_client.decrypt(answer.read(), query), logits)
        running.wait_for("he_requests_in_flight", 0)
        assert running.evaluate(query)[0] == 200
        assert running.metric('he_shed_total{limit="requests"}') == 1


def test_connections_above_the_limit(folder, head):
    """One that says nothing gives way; where all are being answered, another is refused."""
    with serving(folder, head[0], "--max-connections", 2) as running:
        with connect(running.port) as first, connect(running.port):
            assert running.ask("GET", "/healthz")[0] == 200
            assert first.recv(1) == b""
        with connect(running.port) as first, connect(running.port) as second:
            for sock in (first, second):
                sock.sendall(head_of(1000, "Expect: 100-continue\r\n"))
                assert sock.recv(100).startswith(b"HTTP/1.1 100")
            with connect(running.port) as third:
                answer = http.client.HTTPResponse(third)
                answer.begin()
                assert "connections" in problem((answer.status, answer.headers, answer.read()), 503)
        running.wait_until(lambda: running.ask("GET", "/healthz")[0] == 200)
        assert running.metric('he_connections_cut_total{reason="idle"}') >= 1
        assert running.metric('he_connections_cut_total{reason="limit"}') >= 1


def test_sigterm_finishes_what_is_in_flight(folder, head, samples, bfv_client):
    query, logits = samples[-1]
    with serving(folder, head[0], "--body-seconds", 30) as running:
        with connect(running.port) as sock, connect(running.port) as idle:
            sock.sendall(head_of(len(query)) + query[:-100])
            running.wait_for("he_requests_in_flight", 1)
            running.process.terminate()
            assert idle.recv(1) == b""
            with pytest.raises(OSError):
                running.ask("GET", "/healthz")
            sock.sendall(query[-100:])
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            np.testing.assert_array_equal(bfv_client.decrypt(answer.read(), query), logits)
        assert running.process.wait(30) == 0
        shown = json.loads(running.process.stdout.read())
        assert shown["url"] == running.url


def test_a_client_that_never_reads_is_cut_off(folder, head, bfv_client):
    query = bfv_client.encrypt(np.ones((60_000, 6)), 1.0)
    limits = ["--send-seconds", 1, "--header-seconds", 1, "--max-samples", 60_000]
    with serving(folder, head[0], *limits) as running, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", running.port))
        sock.sendall(head_of(len(query)) + query)
        running.wait_for("he_requests_in_flight", 1)
        running.wait_for("he_requests_in_flight", 0)
        assert running.metric("he_bytes_in_flight") == 0
        assert running.stop() == 0


def test_tls(folder, head, samples, bfv_client):
    certificate, key = make_certificate(folder)
    query, logits = samples[0]
    with serving(folder, head[0], "--certificate", certificate, "--private-key", key) as running:
        assert running.url.startswith("https://")
        service = remote.Service(running.url, str(certificate), 30)
        np.testing.assert_array_equal(bfv_client.decrypt(service.evaluate(query), query), logits)
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("options", "naming"),
    [
        (["--port", "TAKEN"], "port="),
        (["--port", "70000"], "port=70000"),
        (["--host", "256.1.1.1"], "256.1.1.1"),
        (["--head", "NOTHING"], "nothing.npz"),
        (["--head", "OTHER"], "kernel"),
        (["--certificate", "NOTHING"], "nothing.npz"),
        (["--certificate", "OTHER"], "certificate"),
        (["--private-key", "OTHER"], "--certificate"),
        (["--max-requests", "0"], "max_requests"),
        (["--body-seconds", "nan"], "body_seconds"),
        (["--max-bytes", "5"], "max_bytes"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(folder, head, options, naming):
    np.savez(folder / "other.npz", other=np.ones(3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"NOTHING": folder / "nothing.npz", "OTHER": folder / "other.npz", "TAKEN": taken.getsockname()[1]}
        command = [sys.executable, "-m", "tfprivacy_lab", "he", "serve", "--head", head[0], "--port", "0"]
        command = [str(part) for part in (*command, *(names.get(option, option) for option in options))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert naming in done.stderr


def load_test(folder, head, samples, client, seconds):
    """Sixteen clients at a service for eight, and six that leave, stall or send garbage."""
    limits = ["--max-requests", 8, "--workers", 2, "--body-seconds", 1, "--header-seconds", 2]
    with serving(folder, head[0], *limits) as running:
        load = Load(running, samples, client)
        load.run(seconds / 3, good=16, bad=6)
        running.wait_for("he_requests_in_flight", 0)
        warm = running.memory
        counts = load.run(seconds * 2 / 3, good=16, bad=6)
        running.wait_for("he_requests_in_flight", 0)
        assert running.metric("he_bytes_in_flight") == 0
        grown = running.memory - warm
        assert len(load.tricks) == 5
        assert running.stop() == 0
        text = running.log.read_text()
    print(f"{counts} in {seconds * 2 / 3:.0f} s, {load.tricks}, resident {warm / 2**20:.0f} {grown / 2**20:+.1f} MiB")
    assert "Traceback" not in text
    assert '"level": "error"' not in text
    assert counts[200] > 20
    assert counts[503] > 0
    # Eight bodies and replies of this test are 4 MiB; what leaked by the request would be far more.
    assert grown < 24 * 2**20
    return counts


def test_load_above_capacity_is_answered_exactly_or_shed(folder, head, samples, bfv_client):
    load_test(folder, head, samples, bfv_client, 6)


@pytest.mark.long
def test_a_minute_of_load_above_capacity(folder, head, samples, bfv_client):
    load_test(folder, head, samples, bfv_client, 90)


def test_limits_name_what_is_wrong():
    for name, value in (("max_requests", 0), ("workers", -1), ("send_seconds", 0), ("max_body_bytes", 2**40)):
        with pytest.raises(InputError, match=name):
            Limits(**{name: value})


def test_many_clients_on_one_service_never_mix(service, samples, bfv_client):
    def ask(index):
        query, logits = samples[index % len(samples)]
        status, _, reply = service.evaluate(query)
        return status, reply, query, logits

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for status, reply, query, logits in pool.map(ask, range(48)):
            assert status == 200
            np.testing.assert_array_equal(bfv_client.decrypt(reply, query), logits)
