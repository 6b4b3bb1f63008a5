"""The service's limits inside one process: an evaluator that waits for the test, called by the ASGI protocol."""

import asyncio
import json
import logging
import threading

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he import service
from tfprivacy_lab.he.admission import Admission, Limits


class Evaluator:
    """Answers ``query * times`` once ``go`` is set; remembers what it was asked."""

    times = 1

    def __init__(self, kernel, bias=None, replies="any"):
        self.replies = replies
        self.asked, self.go, self.error = [], threading.Event(), None
        Evaluator.last = self

    def evaluate(self, query, name="query"):
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


def test_bodies_are_counted_before_they_are_read(app):
    async def run():
        application, evaluator = app(workers=1, max_bytes=100, max_body_bytes=80)
        slow = Caller(application, bytes(60))
        await until(lambda: application.admission.bytes == 60)
        status, body = await Caller(application, bytes(60)).give(bytes(60)).answer()
        assert (status, "bytes" in json.loads(body)["detail"]) == (503, True)
        evaluator.go.set()
        assert (await Caller(application, bytes(40)).give(bytes(40)).answer())[0] == 200
        slow.give(bytes(60))
        assert (await slow.answer())[0] == 200
        assert application.admission.bytes == 0

    asyncio.run(run())


def test_replies_on_their_way_out_hold_back_the_next_evaluation(app, monkeypatch):
    monkeypatch.setattr(Evaluator, "times", 20)

    async def run():
        application, evaluator = app(workers=1, max_bytes=100, max_body_bytes=80)
        evaluator.go.set()
        first = Caller(application).give(b"first")
        first.reading.clear()
        await until(lambda: application.admission.bytes == 105)
        assert (await Caller(application).give(b"other").answer())[0] == 503
        first.reading.set()
        assert (await first.answer())[0] == 200
        waiting = [Caller(application, bytes(9)) for _ in range(2)]
        for caller in waiting:
            caller.reading.clear()
            caller.give(bytes(9))
        # Two bodies of 9 and one reply of 180: the second waits until the first reply is gone.
        await until(lambda: application.admission.bytes == 198)
        assert len(evaluator.asked) == 2
        for caller in waiting:
            caller.reading.set()
            assert await caller.answer() == (200, bytes(180))
        assert application.admission.bytes == 0

    asyncio.run(run())


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
        admission.admit(1)
    assert admission.retry_after() == 10
    for _ in range(900):
        admission.admit(1)
    assert admission.retry_after() == 30
