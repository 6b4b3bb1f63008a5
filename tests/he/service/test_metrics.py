"""The log's quota: lines that anyone can cause for nothing are limited, and those left out are counted."""

import json
import logging

from tfprivacy_lab.he.service.metrics import LOGGER, JsonLines, Quota


def record(message="request", level=logging.INFO, logger=LOGGER.name, **fields):
    made = logging.LogRecord(logger, level, "file", 1, message, (), None)
    if fields:
        made.fields = fields
    return made


def test_lines_of_a_kind_are_limited_and_the_next_says_how_many_were_left_out():
    clock = [0.0]
    quota = Quota(lines=3, seconds=10, now=lambda: clock[0])
    refused = {"route": "/v1/evaluate", "status": 503, "samples": None}
    assert [quota.filter(record(**refused)) for _ in range(6)] == [True] * 3 + [False] * 3
    assert quota.filter(record(**refused | {"status": 408}))
    assert quota.filter(record(**refused | {"route": "other"}))
    assert quota.filter(record("connection cut: limit", logging.WARNING))
    clock[0] = 9.9
    assert not quota.filter(record(**refused))
    clock[0] = 10.0
    later = record(**refused)
    assert quota.filter(later)
    assert json.loads(JsonLines().format(later))["left_out"] == 4
    again = record(**refused)
    assert quota.filter(again)
    assert "left_out" not in json.loads(JsonLines().format(again))


def test_messages_of_libraries_that_name_who_caused_them_are_one_kind():
    quota = Quota(lines=3, seconds=10, now=lambda: 0.0)
    lines = [record(f"fatal error on transport {i}", logging.ERROR, "asyncio") for i in range(100)]
    assert sum(map(quota.filter, lines)) == 3
    assert len(quota._seen) == 1


def test_answered_queries_are_all_logged():
    quota = Quota(lines=1, seconds=10, now=lambda: 0.0)
    answered = {"route": "/v1/evaluate", "status": 200, "samples": 1}
    assert all(quota.filter(record(**answered)) for _ in range(100))
