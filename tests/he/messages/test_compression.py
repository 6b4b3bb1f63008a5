"""Residues in as many bits as they have: nothing is lost, sizes are as stated, what is beyond a prime is refused."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.compression import compressed, expanded
from tfprivacy_lab.he.ring.parameters import PARAMETERS

KERNEL, BIAS = np.random.default_rng(0).normal(size=(6, 3)), np.array([0.1, -0.2, 0.3])


@given(st.integers(1, 63), st.integers(1, 4), st.integers(0, 2**32))
def test_bits_come_back_and_lie_where_stated(bits, rows, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, 64 * rows, dtype=np.uint64)
    values[[0, -1]] = 2**bits - 1
    packed = compressed(values, bits)
    assert packed.nbytes == values.size * bits // 8
    assert np.array_equal(expanded(packed.tobytes(), bits), values)
    for row in range(rows):
        whole = int.from_bytes(packed[row * bits : (row + 1) * bits].tobytes(), "little")
        found = [whole >> bits * i & (2**bits - 1) for i in range(64)]
        assert found == values[64 * row : 64 * (row + 1)].tolist()


@pytest.mark.parametrize("name", PARAMETERS)
def test_compressed_queries_get_compressed_replies_that_decrypt_alike(request, name):
    client = request.getfixturevalue(f"{name.replace('-', '_')}_client")
    features, server = np.random.default_rng(1).uniform(-1, 1, (3, 6)), he.Server(KERNEL, BIAS)
    bits = {"bfv": 53, "ckks": 53, "bfv-sanitized": 45, "ckks-sanitized": 45}[name]
    for packing in client.parameters.packings:
        plain, small = (client.encrypt(features, 1.0, packing, compress=compress) for compress in (False, True))
        replies = server.evaluate(plain), server.evaluate(small)
        for one, other in ((plain, small), (replies[0], replies[1])):
            assert len(other) - 132 == (len(one) - 132) * bits // 64
            assert (one[94], other[94]) == (64, bits)
        logits = [client.decrypt(reply, query) for reply, query in zip(replies, (plain, small), strict=True)]
        np.testing.assert_allclose(logits[0], logits[1], atol=0 if client.scheme == "bfv" else 1e-3)


def test_a_reply_of_another_form_than_the_query_is_refused(bfv_client):
    query = bfv_client.encrypt(np.ones((1, 6)), 1.0, compress=True)
    header, body = wire.parse(he.Server(KERNEL).evaluate(query), wire.REPLY, "reply")
    other = wire.pack(dataclasses.replace(header, residue_bits=64), wire.residues(header, body, "reply")[0].copy())
    bfv_client.decrypt(other)
    with pytest.raises(InputError, match="another query"):
        bfv_client.decrypt(other, query)


def test_compressed_residues_beyond_their_prime_are_refused(bfv_client):
    """Within the bits, and not below the prime."""
    query = bytearray(bfv_client.encrypt(np.ones((1, 6)), 1.0, "coefficient", compress=True))
    query[100 : 100 + 7] = b"\xff" * 7
    query[-32:] = hashlib.sha256(query[:-32]).digest()
    with pytest.raises(InputError, match="residues of query below"):
        he.Server(KERNEL).evaluate(bytes(query))


def test_the_size_limit_is_of_what_it_expands_to(bfv_client, monkeypatch):
    query = bfv_client.encrypt(np.ones((1, 6)), 1.0, "coefficient", compress=True)
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 2**15 - 1)
    assert len(query) < 2**15 - 1
    with pytest.raises(InputError, match="in several queries"):
        he.Server(KERNEL).evaluate(query)
