"""Prepared heads: made once for all who ask, kept as far as the bytes reach, and a refusal is remembered."""

import concurrent.futures
import threading
import types

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.server import head as server
from tfprivacy_lab.he.server.prepared import PreparedHeads


def head(nbytes):
    return types.SimpleNamespace(nbytes=nbytes)


def test_many_that_ask_at_a_time_make_it_once():
    made, go, asked = [], threading.Event(), threading.Barrier(9)

    def make(key):
        made.append(key)
        assert go.wait(30)
        return head(1)

    heads = PreparedHeads(make)

    def ask(_):
        asked.wait(30)
        return heads.get(("step",))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = pool.map(ask, range(8))
        asked.wait(30)
        go.set()
        assert len({id(one) for one in found}) == 1
    assert made == ["step"]


def test_what_was_used_last_is_kept_within_the_bytes():
    made = []
    heads = PreparedHeads(lambda key: made.append(key) or head(40), most_bytes=100)
    for key in "abacab":
        heads.get((key,))
    assert made == ["a", "b", "c", "b"]
    assert heads.nbytes == 80
    large = PreparedHeads(lambda key: head(1000), most_bytes=100)
    assert large.get(("a",)) is large.get(("a",))
    large.get(("b",))
    assert large.nbytes == 1000


def test_refusals_are_remembered_and_faults_are_not():
    made = []

    def make(key):
        made.append(key)
        raise InputError("too large") if key == "refused" else MemoryError

    heads = PreparedHeads(make)
    for _ in range(2):
        with pytest.raises(InputError, match="too large"):
            heads.get(("refused",))
        with pytest.raises(MemoryError):
            heads.get(("fault",))
    assert made == ["refused", "fault", "fault"]
    assert ("refused",) in heads
    assert ("fault",) not in heads


def test_a_server_quantises_once_a_step_and_stays_within_the_bytes(bfv_client, monkeypatch):
    counted = []
    plain = QuantizedHead.from_float.__func__
    monkeypatch.setattr(
        QuantizedHead,
        "from_float",
        classmethod(lambda cls, *arguments: counted.append(arguments[3]) or plain(cls, *arguments)),
    )
    served = he.Server(np.full((16, 4), 0.5))
    queries = [bfv_client.encrypt(np.ones((1, 16)), size) for size in (1.0, 1.0, 2.0)]
    for query in queries:
        served.evaluate(query)
    assert len(counted) == 2
    refused = bfv_client.encrypt(np.full((1, 16), 1e-30))
    served = he.Server(np.ones((16, 2)), [1.0, 0.0])
    for _ in range(2):
        with pytest.raises(InputError, match="larger range"):
            served.evaluate(refused)
    assert len(counted) == 3


@pytest.mark.parametrize("name", ["bfv", "ckks", "bfv-sanitized", "ckks-sanitized"])
def test_a_prepared_head_knows_what_it_takes(name):
    served = he.Server(np.random.default_rng(0).normal(size=(64, 40)))
    for packing in he.PARAMETERS[name].packings:
        prepared = served._prepared.get((name, -12, packing, ()))
        arrays = [prepared.head.kernel]
        if isinstance(prepared, server._Batched):
            arrays += [prepared.weights, prepared.offsets]
        else:
            inner = prepared.prepared
            arrays += [*inner.bias, *inner._transformed_bias, *(part for pair in inner._weights for part in pair)]
        assert prepared.nbytes == sum(array.nbytes for array in arrays)
