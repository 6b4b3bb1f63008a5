"""Bytes that must be refused, each in one line that names them, and a secret that stays home."""

import copy
import dataclasses
import hashlib
import os
import pickle
import stat
import subprocess
import sys

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.ring.parameters import PARAMETERS

KERNEL, BIAS = np.array([[1.0, -1.0, 0.5]] * 4), np.array([0.1, 0.2, 0.3])
SERVER = he.Server(KERNEL, BIAS)
HEADER_BYTES = 100


@pytest.fixture(scope="module")
def exchange(bfv_client):
    query = bfv_client.encrypt(np.ones((3, 4)), packing="batched")
    return {"query": query, "reply": SERVER.evaluate(query), "keys": bfv_client.to_bytes()}


def _read(kind, client, data):
    """Give the bytes to whom they are for."""
    if kind == "query":
        return SERVER.evaluate(data)
    return client.decrypt(data) if kind == "reply" else he.Client.from_bytes(data)


def _refused(kind, client, data, match=None):
    with pytest.raises(InputError, match=match) as error:
        _read(kind, client, data)
    assert "\n" not in str(error.value)
    assert kind in str(error.value)


def _signed(data):
    """The same bytes under a digest that fits: what a forger would send."""
    return bytes(data[:-32]) + hashlib.sha256(data[:-32]).digest()


def _with(data, offset, value):
    changed = bytearray(data)
    changed[offset : offset + len(value)] = value
    return _signed(changed)


@pytest.mark.parametrize("kind", ["query", "reply", "keys"])
def test_layout_is_as_documented(exchange, bfv_client, kind):
    data = exchange[kind]
    assert data[:8] == b"TFPLABHE"
    assert data[8:12] == bytes([3, 0, {"keys": 1, "query": 2, "reply": 3}[kind], 1])
    pinned = PARAMETERS["bfv"]
    numbers = [(12, 4, 2048), (16, 4, 12), (20, 8, pinned.modulus), (28, 8, pinned.plaintext_modulus)]
    numbers += [(92, 2, 0), (94, 2, 64)]
    numbers += [(68, 8, 0 if kind == "keys" else 3), (76, 4, {"keys": 0, "query": 4, "reply": 3}[kind])]
    for offset, size, value in numbers:
        assert int.from_bytes(data[offset : offset + size], "little") == value
    assert data[36:52] == bfv_client._key_id
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()
    if kind != "keys":
        assert len(data) == HEADER_BYTES + 32 + data[76] * 2 * 2048 * 8


@pytest.mark.parametrize("kind", ["query", "reply", "keys"])
def test_truncated_and_extended_bytes_are_refused(exchange, bfv_client, kind):
    data = exchange[kind]
    for length in [0, 1, 7, 8, 12, 40, *range(HEADER_BYTES - 1, HEADER_BYTES + 34), len(data) // 2, len(data) - 1]:
        _refused(kind, bfv_client, data[:length])
    _refused(kind, bfv_client, data + b"\0", "truncated or damaged")
    _refused(kind, bfv_client, data[:-1], "truncated or damaged")


@pytest.mark.parametrize("kind", ["query", "reply", "keys"])
def test_every_flipped_byte_is_noticed(exchange, bfv_client, kind):
    data = exchange[kind]
    places = [*range(HEADER_BYTES), *range(HEADER_BYTES, len(data), 997), *range(len(data) - 32, len(data))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        _refused(kind, bfv_client, bytes(changed))


@pytest.mark.parametrize("kind", ["query", "reply", "keys"])
def test_other_kinds_and_other_bytes_are_refused(exchange, bfv_client, kind):
    for other in {"query", "reply", "keys"} - {kind}:
        _refused(kind, bfv_client, exchange[other])
    _refused(kind, bfv_client, b"PK\x03\x04" + bytes(300), "other bytes")
    _refused(kind, bfv_client, pickle.dumps(KERNEL), "other bytes")
    _refused(kind, bfv_client, KERNEL, "as bytes, got ndarray")
    _refused(kind, bfv_client, "text", "as bytes, got str")


def test_private_key_file_offered_as_a_query_is_called_that(exchange, bfv_client):
    _refused("query", bfv_client, exchange["keys"], "private key file: keep it secret, never send it")
    _refused("reply", bfv_client, exchange["keys"], "private key file: keep it secret")


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (8, b"\2\0", "version 2"),
        (10, b"\x09", "kind 9"),
        (11, b"\7", "scheme number 7"),
        (11, b"\2", "pinned ckks parameter"),
        (12, (4096).to_bytes(4, "little"), "poly_modulus_degree=2048, got 4096"),
        (16, b"\x20", "feature_bits=12, got 32"),
        (20, (1153).to_bytes(8, "little"), "coeff_modulus"),
        (28, (65537).to_bytes(8, "little"), "plaintext_modulus"),
        (68, (0).to_bytes(8, "little"), "at least one sample"),
        (68, (2**63).to_bytes(8, "little"), "several queries"),
        (68, (2049).to_bytes(8, "little"), "truncated or damaged"),
        (76, (0).to_bytes(4, "little"), "columns"),
        (76, (2**32 - 1).to_bytes(4, "little"), "columns"),
        (80, (2000).to_bytes(4, "little", signed=True), "step"),
        (84, np.float64(np.nan).tobytes(), "weight scale"),
        (92, b"\2", "packing 2"),
        (94, b"\0", "residues of 64 bits, or of 53 if compressed, got 0"),
        (94, b"\x3f", "residues of 64 bits, or of 53 if compressed, got 63"),
        (94, b"\x35", "truncated or damaged"),
        (96, (2**31).to_bytes(4, "little"), "features"),
        (HEADER_BYTES, PARAMETERS["bfv"].modulus.to_bytes(8, "little"), "residues"),
        (HEADER_BYTES + 2**15, b"\xff" * 8, "residues"),
    ],
)
@pytest.mark.parametrize("kind", ["query", "reply"])
def test_forged_fields_under_a_fitting_digest_are_refused(exchange, bfv_client, kind, offset, value, match):
    _refused(kind, bfv_client, _with(exchange[kind], offset, value), match)


def test_forged_key_files_are_refused(exchange, bfv_client):
    keys = exchange["keys"]
    _refused("keys", bfv_client, _with(keys, 68, b"\1"), "no query fields")
    _refused("keys", bfv_client, _with(keys, HEADER_BYTES + 88, b"\xff" * 8), "keys that fit: a residue is beyond")
    for offset in (0, 4, 8, 16, 40, 56, 88, 88 + 16384, 88 + 16384 + 8, 88 + 16384 + 48, 88 + 16384 + 113):
        place = HEADER_BYTES + offset
        _refused("keys", bfv_client, _with(keys, place, bytes([keys[place] ^ 1])), "keys that fit")


def test_key_file_of_two_different_pairs_is_refused(exchange, bfv_client):
    other = he.Client.generate("bfv").to_bytes()
    split = HEADER_BYTES + 88 + 16384
    _refused("keys", bfv_client, _signed(exchange["keys"][:split] + other[split:]), "do not decrypt")


def test_reply_of_other_keys_scheme_or_query_is_refused(exchange, bfv_client, ckks_client):
    other = he.Client.generate("bfv")
    _refused("reply", other, exchange["reply"], "another key")
    _refused("reply", ckks_client, exchange["reply"], "under the set ckks, as the keys are, got bfv")
    bfv_client.decrypt(exchange["reply"], query=exchange["query"])
    with pytest.raises(InputError, match="another query"):
        bfv_client.decrypt(exchange["reply"], query=bfv_client.encrypt(np.ones((3, 4))))
    with pytest.raises(InputError, match="Expected a bfv client"):
        ckks_client.decrypt_integers(exchange["reply"])


def test_a_reply_under_another_set_of_the_scheme_names_both_sets(ckks_client, ckks_sanitized_client):
    reply = he.Server(np.ones((4, 2))).evaluate(ckks_client.encrypt(np.ones((1, 4)), 1.0))
    with pytest.raises(InputError, match="under the set ckks-sanitized, as the keys are, got ckks"):
        ckks_sanitized_client.decrypt(reply)


def test_query_of_another_width_is_refused(bfv_client):
    with pytest.raises(InputError, match=r"query q\.bin of 4 features, as the head's kernel has, got 5"):
        SERVER.evaluate(bfv_client.encrypt(np.ones((1, 5))), name="query q.bin")


def test_batch_beyond_a_message_is_refused_before_any_work(bfv_client, monkeypatch):
    with pytest.raises(InputError, match="at most 32768 samples for 2048 columns, got 32769; encrypt in several"):
        bfv_client.encrypt(np.zeros((32769, 2048), dtype=np.int8), packing="batched")
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 4 * 2**15)
    query = bfv_client.encrypt(np.ones((1, 4)), packing="batched")
    with pytest.raises(InputError, match="several queries"):
        he.Server(np.ones((4, 5))).evaluate(query)


@pytest.mark.parametrize("scheme", ["bgv", "BFV", "", None])
def test_other_schemes_are_refused(scheme):
    with pytest.raises(InputError, match="scheme"):
        he.Client.generate(scheme)


def test_logits_beyond_float64_are_refused(bfv_client):
    reply = he.Server(np.full((1, 1), 1e300)).evaluate(bfv_client.encrypt(np.full((1, 1), 1e30)))
    with pytest.raises(InputError, match="finite"):
        bfv_client.decrypt(reply)


def test_saved_keys_are_private_and_decrypt_what_was_encrypted(client, tmp_path):
    path = tmp_path / "keys.bin"
    os.umask(old := os.umask(0))
    client.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.umask(old) == old
    query = client.encrypt(np.ones((2, 4)))
    loaded = he.Client.load(path)
    np.testing.assert_array_equal(loaded.decrypt(SERVER.evaluate(query)), client.decrypt(SERVER.evaluate(query)))
    assert loaded.to_bytes() == client.to_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"keys\.bin"):
        he.Client.load(path)
    with pytest.raises(InputError, match=r"missing\.bin"):
        he.Client.load(tmp_path / "missing.bin")


def test_encryption_is_fresh_every_time(client):
    features = np.ones((1, 2))
    first, second = client.encrypt(features), client.encrypt(features)
    assert first[36:52] == second[36:52]
    assert first[52:68] != second[52:68]
    residues = [np.frombuffer(data[HEADER_BYTES:-32], "<u8") for data in (first, second)]
    assert (residues[0] == residues[1]).sum() < 3
    assert not np.array_equal(residues[0][: residues[0].size // 2], residues[0][residues[0].size // 2 :])


def test_stated_range_makes_the_header_independent_of_the_features(client):
    small, large = client.encrypt(np.full((1, 2), 1e-6), 1.0), client.encrypt(np.full((1, 2), 1.0), 1.0)
    assert small[:52] == large[:52]
    assert small[68:HEADER_BYTES] == large[68:HEADER_BYTES]


def test_no_part_of_the_secret_key_is_in_what_the_server_is_given(client):
    secret = client.to_bytes()[HEADER_BYTES + 88 : HEADER_BYTES + 88 + 2048 * 8]
    assert np.frombuffer(secret, "<u8").max() < client._parameters.modulus
    query = client.encrypt(np.ones((1, 4)))
    windows = {query[start : start + 16] for start in range(len(query) - 15)}
    keys = client.to_bytes()
    assert keys[36:52] in windows  # the search finds what is there: the key id
    found = [start for start in range(len(secret) - 15) if secret[start : start + 16] in windows]
    assert found == []


def test_client_does_not_show_copy_or_pickle_its_secret(client):
    assert repr(client) == f"Client(scheme={client.scheme!r}, key_id={client._key_id.hex()})"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret key"):
            leak(client)


def _modules_after(statement):
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.processes
def test_server_works_without_client_library_or_tensorflow(exchange, tmp_path):
    (tmp_path / "query").write_bytes(exchange["query"])
    loaded = _modules_after(
        "from tfprivacy_lab.he import Server\nimport numpy as np, pathlib\n"
        f"Server(np.ones((4, 2))).evaluate(pathlib.Path({str(tmp_path / 'query')!r}).read_bytes())"
    )
    assert "tfprivacy_lab.he.server.head" in loaded
    assert not {"Pyfhel", "tensorflow", "keras"} & set(loaded)
    assert not [name for name in loaded if name.startswith("tfprivacy_lab.he.client")]


@pytest.mark.processes
def test_importing_the_package_imports_no_heavy_library():
    loaded = _modules_after("import tfprivacy_lab.he")
    assert not {"Pyfhel", "tensorflow", "tfprivacy_lab.he.client.head", "numpy"} & set(loaded)
    loaded = _modules_after("import tfprivacy_lab.he.client.head")
    assert not {"Pyfhel", "tensorflow"} & set(loaded)


def test_header_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        wire.Header(wire.KEY, PARAMETERS["bfv"], bytes(16)).samples = 1
