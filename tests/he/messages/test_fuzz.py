"""Mutated messages against parser, server and client: one clear error or an answer, never a crash or a wrong answer."""

import dataclasses
import hashlib
import resource

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.slots import SlotHeadClient
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.plans.slot_head import SlotHead
from tfprivacy_lab.he.server.slots import SlotHeadServer

KERNEL, BIAS = np.random.default_rng(0).normal(size=(6, 3)), np.array([0.1, -0.2, 0.3])
HEADER = 100
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def mutated(data, rng):
    """Some mutations: bits, bytes, numbers, lengths, splices; often under a digest that fits."""
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


def forged(changed):
    """Whether the digest fits."""
    return len(changed) >= 32 and hashlib.sha256(changed[:-32]).digest() == changed[-32:]


@pytest.mark.parametrize("count", [1_500, pytest.param(25_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
@pytest.mark.parametrize("name", ["bfv", "ckks", "bfv_sanitized", "ckks_sanitized"])
def test_mutated_queries_and_replies(request, name, count):
    """Long: 100,000 queries and as many replies, under the four sets together, half of them compressed."""
    client = request.getfixturevalue(f"{name}_client")
    rng, server = np.random.default_rng(len(name)), he.Server(KERNEL, BIAS)
    features = rng.uniform(-1, 1, (2, 6))
    queries = [client.encrypt(features, 1.0, "coefficient", compress=compress) for compress in (False, True)]
    replies = [server.evaluate(query) for query in queries]
    exact, answered, refused = client.decrypt(replies[0], queries[0]), 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        query, reply = queries[number % 2], replies[number % 2]
        damaged = mutated(query, rng)
        answer, error = attempt(server.evaluate, damaged)
        answered, refused = answered + (error is None), refused + (error is not None)
        if error is None:
            check_answer(client, query, damaged, answer, exact)
        damaged = mutated(reply, rng)
        logits, error = attempt(client.decrypt, damaged, query)
        if error is None:
            # What a fitting digest covers may be forged, but not the query that it answers.
            assert forged(damaged)
            assert damaged[36:68] == query[36:68]
            assert logits.shape[0] == 2
            assert np.isfinite(logits).all()
        if damaged == reply:
            np.testing.assert_allclose(logits, exact, atol=0 if client.scheme == "bfv" else 1e-3)
    assert refused > count / 2
    assert answered > count / 50
    assert answered + refused == count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def check_answer(client, query, damaged, answer, exact):
    """An answered query is whole, its answer is to it alone, and right where what is encrypted is the original's."""
    assert forged(damaged)
    sent, body = wire.parse(damaged, wire.QUERY, "query")
    got, residues = wire.parse(answer, wire.REPLY, "reply")
    for field in ("key_id", "query_id", "samples", "step_exponent", "packing", "residue_bits"):
        assert getattr(got, field) == getattr(sent, field)
    assert (got.columns, got.features) == (3, 6)
    original, untouched = wire.parse(query, wire.QUERY, "query")
    if bytes(body) == bytes(untouched) and (sent.step_exponent, sent.residue_bits) == (
        original.step_exponent,
        original.residue_bits,
    ):
        mine = dataclasses.replace(got, key_id=original.key_id, query_id=original.query_id)
        whole = wire.residues(got, residues, "reply")[0].copy()
        logits = client.decrypt(wire.pack(mine, whole), query)
        np.testing.assert_allclose(logits, exact, atol=0 if client.scheme == "bfv" else 1e-3)


@pytest.mark.parametrize("count", [150, pytest.param(3_000, marks=pytest.mark.long)])
def test_mutated_key_files(bfv_client, count):
    """A private key file that is not as it was written is refused, or is another pair of keys that fits."""
    rng, keys = np.random.default_rng(4), bfv_client.to_bytes()
    query, refused = bfv_client.encrypt(np.ones((1, 6)), 1.0), 0
    for _ in range(count):
        damaged = mutated(keys, rng)
        client, error = attempt(he.Client.from_bytes, damaged)
        refused += error is not None
        if error is None:
            assert forged(damaged)
            assert client.to_bytes() == damaged
            if damaged[36:52] == keys[36:52]:
                assert client.decrypt(he.Server(KERNEL).evaluate(query), query).shape == (1, 3)
    assert refused > count / 2


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.long)])
def test_mutated_evaluation_keys(count):
    """SEAL sees residues below their primes and nothing else that a client chose."""
    plan = SlotHead.make(KERNEL, BIAS, "naive")
    keys, rng, refused = SlotHeadClient(plan.public).evaluation_keys(), np.random.default_rng(5), 0
    places = {0, 8, 16, 48, 56, len(keys.rotation) - 1}
    for number in range(count):
        changed = bytearray(keys.rotation)
        place = int(rng.integers(len(changed))) if number % 2 else sorted(places)[number // 2 % len(places)]
        changed[place : place + 8] = [b"\xff" * 8, rng.bytes(8), bytes(8)][number % 3][: len(changed) - place]
        if number % 5 == 4:
            del changed[place:]
        bad = dataclasses.replace(keys, rotation=bytes(changed)).sealed()
        refused += attempt(SlotHeadServer, plan, bad)[1] is not None
    assert refused > count / 2


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
