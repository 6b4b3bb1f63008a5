"""Mutated messages against parser, server and client: one clear error or an answer, never a crash or a wrong answer."""

import hashlib
import resource

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he import messages

KERNEL, BIAS = np.random.default_rng(0).normal(size=(6, 3)), np.array([0.1, -0.2, 0.3])
HEADER = 100
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def mutated(data, rng):
    """One mutation: bits, bytes, numbers, lengths, splices; often under a digest that fits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(7), int(rng.integers(len(changed))) if len(changed) else 0
        if rng.random() < 0.7:
            place = min(place, len(changed)) % HEADER if len(changed) else 0
        if kind == 0 and len(changed) > place:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and len(changed) > place:
            changed[place] = INTERESTING[rng.integers(len(INTERESTING))]
        elif kind == 2:
            changed[place : place + 8] = rng.bytes(8)
        elif kind == 3:
            changed[place : place + 8] = b"\xff" * 8
        elif kind == 4:
            del changed[place + int(rng.integers(64)) :]
        elif kind == 5:
            changed += rng.bytes(int(rng.integers(1, 40)))
        else:
            other = int(rng.integers(max(1, len(changed))))
            changed[place : place + 16] = changed[other : other + 16]
    if rng.random() < 0.8 and len(changed) >= 32:
        changed[-32:] = hashlib.sha256(changed[:-32]).digest()
    return bytes(changed)


@pytest.mark.parametrize("count", [1_500, pytest.param(25_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["bfv", "ckks", "bfv_sanitized", "ckks_sanitized"])
def test_mutated_queries_and_replies(request, name, count):
    client = request.getfixturevalue(f"{name}_client")
    rng, server = np.random.default_rng(len(name)), he.Server(KERNEL, BIAS)
    features = rng.uniform(-1, 1, (2, 6))
    query = client.encrypt(features, 1.0, "coefficient")
    reply = server.evaluate(query)
    exact, answered, refused = client.decrypt(reply, query), 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        answer, error = attempt(server.evaluate, mutated(query, rng))
        answered, refused = answered + (error is None), refused + (error is not None)
        if error is None:
            assert messages.parse(answer, messages.REPLY, "reply")[0].columns == 3
        damaged = mutated(reply, rng)
        logits, error = attempt(client.decrypt, damaged, query)
        if error is None:
            # Anybody can make a digest that fits: what it covers may be forged, but not the query that it answers.
            assert damaged[36:68] == query[36:68]
            assert logits.shape[0] == 2
            assert np.isfinite(logits).all()
        if damaged == reply:
            assert np.array_equal(logits, exact)
    assert refused > count / 2
    assert answered + refused == count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def attempt(function, *arguments):
    """What it returns and None, or None and its one-line error; anything else is a crash."""
    try:
        return function(*arguments), None
    except InputError as error:
        told = str(error)
    assert "\n" not in told
    return None, told


def test_an_announced_size_is_never_allocated(bfv_client):
    """Two exabytes announced in a hundred bytes."""
    query = bytearray(bfv_client.encrypt(np.ones((1, 6)), 1.0, "coefficient"))
    for samples in (2**20, 2**40, 2**63):
        query[68:76] = samples.to_bytes(8, "little")
        query[-32:] = hashlib.sha256(query[:-32]).digest()
        with pytest.raises(InputError, match=r"truncated or damaged|several queries"):
            he.Server(KERNEL, BIAS).evaluate(bytes(query))
