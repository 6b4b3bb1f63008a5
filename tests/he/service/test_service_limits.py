"""The service's limits inside one process: an evaluator that waits for the test, called by the ASGI protocol."""

import asyncio
import dataclasses
import json
import logging
import threading

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.server.head import Cost
from tfprivacy_lab.he.server.prepared import PreparedHeads
from tfprivacy_lab.he.service import app as service
from tfprivacy_lab.he.service.admission import CREDIT_SECONDS, PATIENCE_SECONDS, Admission, Limits


def test_limits_are_kept_as_numbers():
    plain = Limits(workers=2)
    kept = Limits(**{name: np.array(value) for name, value in dataclasses.asdict(plain).items()})
    assert json.dumps(dataclasses.asdict(kept)) == json.dumps(dataclasses.asdict(plain))


class Evaluator:
    """Answers ``query * times`` once ``go`` is set; remembers what it was asked. Its queries have no header."""

    times = 1
    samples = 1
    working = 0

    def __init__(self, kernel, bias=None, replies="any", feature_range=None):
        self.replies = replies
        self.asked, self.go, self.error = [], threading.Event(), None
        Evaluator.last = self

    def cost(self, start, length, name="query"):
        return Cost(self.samples, length * self.times, max(self.working, length * self.times))

    def key(self, query, name="query"):
        return ()

    def is_prepared(self, cost):
        return True

    def prepared(self, cost):
        return "a head"

    def evaluate(self, query, name="query", max_error=None, prepared=None):
        assert prepared is not None
        self.asked.append(query)
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return query * self.times


class Caller:
    """One request by the ASGI protocol, in a task of its own."""

    def __init__(self, app, body=b"query", headers=()):
        length = [(b"content-length", b"%d" % len(body))]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/evaluate",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/octet-stream"), *length, *headers],
        }
        self.incoming, self.sent, self.reading = asyncio.Queue(), [], asyncio.Event()
        self.reading.set()
        self.task = asyncio.create_task(app(self.scope, self.incoming.get, self._send))

    async def _send(self, message):
        await self.reading.wait()
        self.sent.append(message)

    def give(self, body, more=False):
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def leave(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def answer(self):
        """(status, body)."""
        await asyncio.wait_for(self.task, 30)
        return self.sent[0]["status"], b"".join(part.get("body", b"") for part in self.sent[1:])


async def until(condition):
    """Let other tasks run until the condition holds."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited for too long")


@pytest.fixture
def app(monkeypatch):
    """Makes (app, evaluator) with limits."""
    monkeypatch.setattr(service, "Server", Evaluator)
    made = []

    def make(**limits):
        application = service.make_app(np.ones((1, 1)), None, Limits(**limits))
        made.append(Evaluator.last)
        return application, Evaluator.last

    yield make
    for evaluator in made:
        evaluator.go.set()


def test_a_client_that_leaves_the_queue_is_never_evaluated(app):
    async def run():
        application, evaluator = app(workers=1)
        first = Caller(application).give(b"first")
        await until(lambda: evaluator.asked)
        second, third = Caller(application, b"second").give(b"second"), Caller(application).give(b"third")
        await until(lambda: application.admission.requests == 3)
        second.leave()
        await until(lambda: application.admission.requests == 2)
        evaluator.go.set()
        assert await first.answer() == (200, b"first")
        assert await third.answer() == (200, b"third")
        await second.task
        assert (second.sent, evaluator.asked) == ([], [b"first", b"third"])
        assert (application.admission.requests, application.admission.bytes) == (0, 0)

    asyncio.run(run())


def test_a_client_that_leaves_while_a_thread_works_holds_its_share_until_the_thread_ends(app):
    async def run():
        application, evaluator = app(workers=1)
        caller = Caller(application).give(b"query")
        await until(lambda: evaluator.asked)
        caller.leave()
        await caller.task
        assert application.admission.requests == 1
        evaluator.go.set()
        await until(lambda: application.admission.requests == 0)
        assert (application.admission.bytes, caller.sent) == (0, [])

    asyncio.run(run())


def test_bodies_are_counted_as_they_come_and_not_as_announced(app):
    """Whoever announces much and sends nothing holds nothing; who sends holds what was sent."""

    async def run():
        application, evaluator = app(workers=1, max_bytes=200, max_body_bytes=80)
        evaluator.go.set()
        silent = [Caller(application, bytes(80)) for _ in range(10)]
        await until(lambda: application.admission.requests == 10)
        assert application.admission.bytes == 0
        assert (await Caller(application, bytes(80)).give(bytes(80)).answer())[0] == 200
        silent[0].give(bytes(60), more=True)
        await until(lambda: application.admission.bytes == 60)
        status, body = await Caller(application, bytes(60)).give(bytes(60)).answer()
        assert (status, "bytes" in json.loads(body)["detail"]) == (503, True)
        assert (await Caller(application, bytes(40)).give(bytes(40)).answer())[0] == 200
        silent[0].give(bytes(20))
        assert (await silent[0].answer())[0] == 200
        for caller in silent[1:]:
            caller.leave()
            await caller.task
        assert (application.admission.requests, application.admission.bytes) == (0, 0)

    asyncio.run(run())


def age(application, seconds=PATIENCE_SECONDS):
    """Makes all transfers begin earlier."""
    for ticket in application.admission._tickets:
        ticket._paid_until -= seconds


def test_a_stalled_body_gives_way_to_another(app):
    """In the place of a request, and in the room for bytes; not before its second is over, and no more than needed."""

    async def run():
        application, evaluator = app(workers=1, max_requests=2, max_bytes=200, max_body_bytes=80)
        evaluator.go.set()
        stalled, slow = Caller(application, bytes(80)), Caller(application, bytes(80)).give(bytes(50), more=True)
        await until(lambda: application.admission.bytes == 50)
        age(application, -10)
        assert (await Caller(application).give(b"query").answer())[0] == 503
        age(application, 10 + PATIENCE_SECONDS)
        assert (await Caller(application).give(b"query").answer())[0] == 200
        status, body = await stalled.answer()
        assert (status, "others waited" in json.loads(body)["detail"]) == (408, True)
        assert not slow.task.done()
        age(application, 25)
        assert (await Caller(application, bytes(80)).give(bytes(80)).answer())[0] == 200
        assert (await slow.answer())[0] == 408
        assert (application.admission.requests, application.admission.bytes) == (0, 0)

    asyncio.run(run())


def test_a_body_that_keeps_to_its_schedule_stays(app):
    """What it has sent pays for a second ahead at most: whoever sends all but the last byte and stops gives way."""

    async def run():
        application, _ = app(workers=1, max_requests=1, body_seconds=60)
        steady = Caller(application, bytes(60)).give(bytes(59), more=True)
        await until(lambda: application.admission.bytes == 59)
        age(application, CREDIT_SECONDS / 2)
        assert (await Caller(application).give(b"query").answer())[0] == 503
        age(application, CREDIT_SECONDS / 2 + PATIENCE_SECONDS)
        other = Caller(application).give(b"query")
        assert (await steady.answer())[0] == 408
        other.leave()

    asyncio.run(run())


def test_a_body_that_is_itself_furthest_behind_leaves_nothing_counted(app):
    async def run():
        application, _ = app(workers=1, max_bytes=200, max_body_bytes=100, body_seconds=100)
        slow = Caller(application, bytes(100)).give(bytes(50), more=True)
        await until(lambda: application.admission.bytes == 50)
        age(application, 50)
        other = Caller(application, bytes(100)).give(bytes(45), more=True)
        await until(lambda: application.admission.bytes == 95)
        slow.give(bytes(10), more=True)
        assert (await slow.answer())[0] in (408, 503)
        assert (application.admission.requests, application.admission.bytes) == (1, 45)
        other.leave()
        await other.task
        assert (application.admission.requests, application.admission.bytes) == (0, 0)

    asyncio.run(run())


def test_an_evaluation_waits_for_replies_on_their_way_out(app, monkeypatch):
    monkeypatch.setattr(Evaluator, "times", 20)

    async def run():
        application, evaluator = app(workers=1, max_bytes=200, max_body_bytes=80)
        evaluator.go.set()
        first = Caller(application).give(b"first")
        first.reading.clear()
        await until(lambda: application.admission.bytes == 100)
        second = Caller(application).give(b"other")
        await until(lambda: application.admission.bodies == 5)
        assert evaluator.asked == [b"first"]
        first.reading.set()
        assert (await first.answer())[0] == (await second.answer())[0] == 200
        assert application.admission.bytes == 0

    asyncio.run(run())


def test_a_reply_that_nobody_reads_gives_way_to_another(app, monkeypatch):
    """Long before its own deadline; and the next one is answered at once."""
    monkeypatch.setattr(Evaluator, "times", 20)

    async def run():
        application, evaluator = app(workers=1, max_bytes=200, max_body_bytes=80, send_seconds=3600)
        evaluator.go.set()
        first = Caller(application).give(b"first")
        first.reading.clear()
        await until(lambda: application.admission.bytes == 100)
        age(application, 3600)
        assert (await Caller(application).give(b"other").answer())[0] == 200
        await first.task
        assert (first.sent, application.admission.bytes) == ([], 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limit", "cost", "naming"),
    [
        ({"max_samples": 64}, {"samples": 65}, "max_samples"),
        ({"max_reply_bytes": 99}, {"times": 20}, "max_reply_bytes"),
        ({"max_bytes": 2**27}, {"working": 2**26 + 1}, "max_bytes"),
    ],
)
def test_what_would_take_too_much_is_refused_by_its_header(app, monkeypatch, limit, cost, naming):
    for name, value in cost.items():
        monkeypatch.setattr(Evaluator, name, value)

    async def run():
        application, evaluator = app(**limit)
        caller = Caller(application, bytes(1000) if "times" not in cost else b"query")
        caller.give(caller_start := bytes(100) if "times" not in cost else b"query", more=len(caller_start) == 100)
        status, body = await caller.answer()
        assert (status, naming in json.loads(body)["detail"]) == (413, True)
        assert (evaluator.asked, application.admission.bytes) == ([], 0)

    asyncio.run(run())


def test_a_step_that_is_new_is_prepared_beside_the_workers(app, monkeypatch):
    """While one is made, queries that need none are answered, and a second one makes nothing for itself."""
    preparing, done, made = threading.Event(), threading.Event(), []

    def prepare(self, cost):
        made.append(cost)
        preparing.set()
        assert done.wait(30)

    monkeypatch.setattr(Evaluator, "is_prepared", lambda self, cost: cost.reply_bytes != 3 or done.is_set())
    monkeypatch.setattr(Evaluator, "prepare", prepare, raising=False)

    async def run():
        application, evaluator = app(workers=1, queue_seconds=30)
        evaluator.go.set()
        new = [Caller(application, b"new").give(b"new") for _ in range(3)]
        await until(preparing.is_set)
        assert (await Caller(application).give(b"query").answer())[0] == 200
        assert len(made) == 1
        done.set()
        for caller in new:
            assert (await caller.answer())[0] == 200

    asyncio.run(run())


def test_ever_new_steps_make_no_more_heads_than_are_kept_and_one_a_worker_and_one_in_the_making(app, monkeypatch):
    class Head:
        living = most = 0
        nbytes = 100

        def __init__(self):
            Head.living += 1
            Head.most = max(Head.most, Head.living)

        def __del__(self):
            Head.living -= 1

    heads = PreparedHeads(lambda step: Head(), most_bytes=150)

    def prepare(self, cost):
        heads.get(cost.key)

    monkeypatch.setattr(Evaluator, "key", lambda self, query, name="query": (bytes(query[:4]),))
    monkeypatch.setattr(Evaluator, "is_prepared", lambda self, cost: cost.key in heads)
    monkeypatch.setattr(Evaluator, "prepare", prepare, raising=False)
    monkeypatch.setattr(Evaluator, "prepared", lambda self, cost: heads.kept(cost.key))

    async def run():
        application, evaluator = app(workers=2, queue_seconds=60, max_requests=64)
        evaluator.go.set()
        callers = [Caller(application, b"%04d query" % (i % 20)).give(b"%04d query" % (i % 20)) for i in range(60)]
        for caller in callers:
            assert (await caller.answer())[0] == 200
        assert len(evaluator.asked) == 60

    asyncio.run(run())
    # Kept, one a worker, in the making; and a worker may let go of its last one a moment after the answer.
    assert Head.most <= 1 + 2 + 1 + 1
    assert Head.living <= 1 + 1


def test_a_reply_that_is_not_read_is_given_up(app):
    async def run():
        application, evaluator = app(send_seconds=0.05)
        evaluator.go.set()
        caller = Caller(application).give(b"query")
        caller.reading.clear()
        await caller.task
        assert (caller.sent, application.admission.requests, application.admission.bytes) == ([], 0, 0)

    asyncio.run(run())


def test_waits_end(app):
    async def run():
        application, evaluator = app(workers=1, queue_seconds=0.05, evaluate_seconds=0.05, body_seconds=0.05)
        first = Caller(application).give(b"first")
        await until(lambda: evaluator.asked)
        queued = Caller(application).give(b"queue")
        status, body = await queued.answer()
        assert (status, "queue" in json.loads(body)["detail"]) == (503, True)
        assert (b"retry-after", b"1") in queued.sent[0]["headers"]
        assert (await first.answer())[0] == 504
        assert application.admission.requests == 1
        assert (await Caller(application).give(b"st", more=True).answer())[0] == 408
        evaluator.go.set()
        await until(lambda: application.admission.requests == 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("a bad\nquery"), 422),
        (MemoryError(), 503),
        (RuntimeError("with a secret path"), 500),
    ],
)
def test_errors_of_the_evaluator(app, caplog, error, status):
    async def run():
        application, evaluator = app()
        evaluator.error = error
        evaluator.go.set()
        got, body = await Caller(application).give(b"query").answer()
        value = json.loads(body)
        assert (got, value["status"]) == (status, status)
        assert "secret" not in body.decode()
        assert "\n" not in value["detail"]
        assert (application.admission.requests, application.admission.bytes) == (0, 0)

    with caplog.at_level(logging.INFO, "tfprivacy_lab.he.service"):
        asyncio.run(run())
    faults = [record for record in caplog.records if record.message == "fault"]
    assert len(faults) == (status == 500)


@pytest.mark.parametrize("body", [b"que", b"query and more"])
def test_a_body_of_another_length_is_refused(app, body):
    async def run():
        application, evaluator = app()
        assert (await Caller(application, b"query").give(body).answer())[0] == 400
        assert (evaluator.asked, application.admission.bytes) == ([], 0)

    asyncio.run(run())


def test_a_service_that_drains_takes_nothing_on(app):
    async def run():
        application, _ = app()
        application.admission.draining = True
        assert (await Caller(application).give(b"query").answer())[0] == 503
        assert not application.admission.ready

    asyncio.run(run())


def test_retry_after_grows_with_what_is_in_flight():
    admission = Admission(Limits(workers=2, max_requests=1000))
    assert admission.retry_after() == 1
    for _ in range(200):
        admission.note_seconds(0.5)
    for _ in range(40):
        admission.admit()
    assert admission.retry_after() == 10
    for _ in range(900):
        admission.admit()
    assert admission.retry_after() == 30
