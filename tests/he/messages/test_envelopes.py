"""Networks' messages: another's, a stale plan's, a damaged or a truncated one is one clear refusal, in every plan."""

import dataclasses
import hashlib
import os
import pathlib
import stat
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.he.networks import answered, dense_network, resealed
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.network import NetworkClient
from tfprivacy_lab.he.client.slots import SingleImageClient, SlotHeadClient
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.envelopes import Envelope, plan_digest
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.plans.deep_image import DeepPlan
from tfprivacy_lab.he.plans.layers import Affine, Network
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.plans.slot_head import SlotHead
from tfprivacy_lab.he.server.network import NetworkServer
from tfprivacy_lab.he.server.slots import DeepImageServer, SingleImageServer, SlotHeadServer

SMALL = dense_network(3, 4, 3, 2)
HEAD = np.random.default_rng(0).normal(size=(4, 2))
KINDS = {
    "batched": (lambda: BatchedPlan.make(SMALL), NetworkClient, NetworkServer),
    "single": (lambda: SinglePlan.make(SMALL), SingleImageClient, SingleImageServer),
    "slots": (lambda: SlotHead.make(HEAD, None, "naive"), SlotHeadClient, SlotHeadServer),
}


class Exchange:
    """A client, its server, a query and the reply."""

    def __init__(self, kind):
        make, client, server = KINDS[kind]
        self.kind, self.plan, self._server, self._client = kind, make(), server, client
        self.client, self.other = client(self.plan.public), client(self.plan.public)
        self.keys = None if kind == "batched" else self.client.evaluation_keys()
        self.server = self.make_server(self.keys)
        self.sample = np.full((3, 4) if kind == "batched" else 4, 0.5)
        self.query = self.client.encrypt(self.sample)
        self.reply = self.server.evaluate(self.query)

    def make_server(self, keys):
        return self._server(self.plan) if keys is None else self._server(self.plan, keys)


@pytest.fixture(scope="module", params=KINDS)
def exchange(request):
    return Exchange(request.param)


def refused(match, function, *arguments, **more):
    with pytest.raises(InputError, match=match) as error:
        function(*arguments, **more)
    assert "\n" not in str(error.value)


def test_another_clients_messages_are_refused(exchange):
    foreign = exchange.other.encrypt(exchange.sample)
    refused("another client's", exchange.other.decrypt, exchange.reply, "any")
    if exchange.keys is not None:
        refused("another client's", exchange.server.evaluate, foreign)
    else:  # no evaluation keys: the server answers, and only the other client reads it
        refused("another client's", exchange.client.decrypt, exchange.server.evaluate(foreign), foreign)


def test_a_stale_public_plan_is_refused(exchange):
    public = dataclasses.replace(exchange.plan.public, input_bits=exchange.plan.public.input_bits - 1)
    assert plan_digest(public) != plan_digest(exchange.plan.public) == plan_digest(KINDS[exchange.kind][0]().public)
    stale = exchange._client(public)
    refused("a stale public plan, or another network", exchange.server.evaluate, stale.encrypt(exchange.sample))
    refused("a stale public plan", stale.decrypt, exchange.reply, "any")
    if exchange.keys is not None:
        refused("evaluation keys for this plan", exchange.make_server, stale.evaluation_keys())
    refused("for this public plan", exchange._client.from_bytes, stale.to_bytes(), exchange.plan.public)


def test_one_changed_residue_is_noticed(exchange):
    def decrypt(reply):
        return exchange.client.decrypt(reply, exchange.query)

    for sealed, use in ((exchange.query, exchange.server.evaluate), (exchange.reply, decrypt)):
        residues = sealed.residues.copy()
        residues.flat[-1] ^= residues.dtype.type(1)
        refused("as they were sealed: they are damaged", use, dataclasses.replace(sealed, residues=residues))
    if exchange.keys is not None:
        changed = bytearray(exchange.keys.rotation)
        changed[len(changed) // 3 + 5000] ^= 1
        refused("damaged", exchange.make_server, dataclasses.replace(exchange.keys, rotation=bytes(changed)))


def test_replies_to_other_queries_and_numbers_of_samples_are_refused(exchange):
    again = exchange.client.encrypt(exchange.sample)
    refused("the reply to this query, got another query's", exchange.client.decrypt, exchange.reply, query=again)
    exchange.client.decrypt(exchange.reply, query=exchange.query)
    replayed = exchange.server.evaluate(again)
    refused("got None; give what encrypt returned, or 'any'", exchange.client.decrypt, replayed, None)
    refused("Expected query as an Envelope, got str", exchange.client.decrypt, replayed, "other")
    with pytest.raises(TypeError, match="query"):
        exchange.client.decrypt(replayed)
    assert exchange.client.decrypt(replayed, "any").shape == exchange.client.decrypt(exchange.reply, "any").shape
    more = dataclasses.replace(exchange.query, samples=10**6)
    refused("damaged", exchange.server.evaluate, more)
    forged = Envelope.sealed("query", more.plan, more.key_id, more.query_id, 10**6, more.residues)
    refused("blocks for 1000000|query of one sample", exchange.server.evaluate, forged)
    refused("Expected a query, got a reply", exchange.server.evaluate, exchange.reply)


def test_bytes_and_files_come_back_as_they_were(exchange, tmp_path):
    for kind, sealed in (("query", exchange.query), ("reply", exchange.reply)):
        sealed.save(tmp_path / kind)
        back = Envelope.load(tmp_path / kind, kind)
        assert back.to_bytes() == sealed.to_bytes()
        refused("to be a", Envelope.load, tmp_path / kind, "reply" if kind == "query" else "query")
    logits = exchange.client.decrypt(exchange.reply, "any")
    exchange.client.save(tmp_path / "keys")
    assert stat.S_IMODE(os.stat(tmp_path / "keys").st_mode) == 0o600
    refused("it is there already", exchange.client.save, tmp_path / "keys")
    loaded = exchange._client.load(tmp_path / "keys", exchange.plan.public)
    np.testing.assert_array_equal(loaded.decrypt(Envelope.load(tmp_path / "reply", "reply"), exchange.query), logits)
    server = exchange.server
    if exchange.keys is not None:
        exchange.keys.save(tmp_path / "evaluation")
        assert EvaluationKeys.load(tmp_path / "evaluation") == exchange.keys
        server = exchange.make_server(EvaluationKeys.load(tmp_path / "evaluation"))
        refused("got evaluation keys", Envelope.load, tmp_path / "evaluation", "query")
    reply = server.evaluate(Envelope.load(tmp_path / "query"))
    assert np.abs(loaded.decrypt(reply, query=exchange.query) - logits).max() < 1e-3
    refused("keep it secret, never send it", Envelope.load, tmp_path / "keys", "query")


def test_truncated_and_changed_bytes_are_refused(exchange):
    holders = [(exchange.query.to_bytes(), Envelope.from_bytes), (exchange.client.to_bytes(), None)]
    holders += [] if exchange.keys is None else [(exchange.keys.to_bytes(), EvaluationKeys.from_bytes)]
    for data, read in holders:
        read = read or (lambda given: exchange._client.from_bytes(given, exchange.plan.public))
        for length in (0, 7, 103, 135, len(data) // 2, len(data) - 1):
            refused("other bytes, or truncated|damaged", read, data[:length])
        for place in (*range(0, 104, 3), 110, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[place] ^= 1
            refused("Expected", read, bytes(changed))
        refused("as bytes, got NoneType", read, None)


def test_ciphertexts_that_hide_nothing_are_refused(exchange):
    residues = exchange.query.residues
    refused("hides nothing", exchange.server.evaluate, resealed(exchange.query, np.zeros_like(residues)))
    masked = dataclasses.replace(exchange.query, residues=np.ma.array(residues, mask=True))
    refused("without masked values", exchange.server.evaluate, masked)


def test_bfv_queries_that_cancel_are_refused():
    """Each hides something, their sum nothing: SEAL refuses to square it, in a worker process."""
    ones = Affine(np.ones((2, 1)), np.zeros(1), np.arange(2)[np.newaxis], 2)
    last = Affine(np.ones((1, 1)), np.zeros(1), np.arange(1)[np.newaxis], 1)
    plan = BatchedPlan.make(Network((ones, last)), "bfv")
    client = NetworkClient(plan.public)
    query = client.encrypt([[0.5, 0.5]])
    residues = query.residues.copy()
    primes = np.array(plan.public.parameters.primes, np.uint64)[:, np.newaxis]
    residues[0, 1] = (primes - residues[0, 0]) % primes
    with NetworkServer(plan, processes=1) as server:
        refused("hides nothing", server.evaluate, resealed(query, residues))


def test_masked_inputs_and_no_samples(exchange):
    masked = np.ma.masked_equal(np.where(np.arange(4) == 1, 0.25, exchange.sample), 0.25)
    refused("without masked values", exchange.client.encrypt, masked)
    if exchange.kind == "batched":
        refused("samples", exchange.client.decrypt, exchange.reply, exchange.query, "3")
        assert exchange.client.decrypt(exchange.reply, exchange.query).shape == (3, 2)


@pytest.mark.processes
def test_bfv_networks_run_in_a_script_without_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import numpy as np
            from tests.he.networks import answered, dense_network
            from tfprivacy_lab.he.plans.network import BatchedPlan
            from tfprivacy_lab.he.client.network import NetworkClient
            from tfprivacy_lab.he.server.network import NetworkServer

            print("started")
            network = dense_network(3, 4, 3, 2)
            plan = BatchedPlan.make(network, "bfv")
            client = NetworkClient(plan.public)
            with NetworkServer(plan, processes=2) as server:
                logits = answered(client, server, np.full((1, 4), 0.5))
            print(bool(np.abs(logits - network.evaluate(np.full((1, 4), 0.5))).max() <= plan.public.error_bound))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout.split(), done.returncode) == (["started", "True"], 0), done.stderr[-2000:]


def scaled(network, factor):
    return Network(tuple(dataclasses.replace(layer, kernel=layer.kernel * factor) for layer in network.layers))


@pytest.mark.parametrize("factor", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("kind", ["single", "deep", "slots"])
def test_plans_of_small_weights_are_such_as_seal_accepts(kind, factor):
    """The finest scales once passed what SEAL encodes."""
    sample = np.full(4, 1.0)
    if kind == "slots":
        plan, client, server = SlotHead.make(HEAD * factor, None, "naive"), SlotHeadClient, SlotHeadServer
        expected = sample @ HEAD * factor
    else:
        network = scaled(SMALL if kind == "single" else dense_network(3, 4, 3, 3, 2), factor)
        plan = (SinglePlan if kind == "single" else DeepPlan).make(network)
        client, server = SingleImageClient, SingleImageServer if kind == "single" else DeepImageServer
        expected = network.evaluate(sample[np.newaxis])[0]
    client = client(plan.public)
    logits = answered(client, server(plan, client.evaluation_keys()), sample)
    assert np.abs(logits - expected).max() <= plan.public.error_bound


WRONG_FIELDS = {
    "samples": (None, "3", -1, 0, True, 2**70, 1.0),
    "plan": (None, "x", b"", b"x" * 31),
    "key_id": (None, b"x", 3),
    "query_id": (None, b"", "x" * 16),
    "kind": (None, "x", [], "evaluation keys"),
    "digest": (None, b"", 3),
    "residues": (None, [1], np.array(3, np.uint32), np.ones((1,) * 6, np.uint32), np.zeros((0, 4), np.uint32)),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_fields_of_another_type_are_refused(exchange, field):
    query, reply = exchange.query, exchange.reply

    def decrypt(given):
        return exchange.client.decrypt(given, query)

    more = (query.residues.astype(object), query.residues.astype(float)) if field == "residues" else ()
    names = [one.name for one in dataclasses.fields(query) if one.name != "digest"]
    for value in (*WRONG_FIELDS[field], *more):
        for sealed, use in ((query, exchange.server.evaluate), (reply, decrypt)):
            changed = dataclasses.replace(sealed, **{field: value})
            refused("Expected", use, changed)
            if field not in ("digest", "residues"):
                refused("Expected", Envelope.sealed, *(getattr(changed, name) for name in names))


def test_sizes_of_zero_are_refused_before_an_array_is_made(exchange):
    data = bytearray(exchange.query.to_bytes()[:104])
    for sizes in ((0, 2**31, 2**31, 2**31, 2**31), (0,) * 5, (0, 2**32 - 1, 1, 1, 1)):
        data[84:104] = struct.pack("<5I", *sizes)
        forged = bytes(data) + hashlib.sha256(data).digest()
        refused("as many residues as its header says", Envelope.from_bytes, forged)


def test_views_that_skip_bytes_are_refused(exchange):
    for data, read in (
        (exchange.query.to_bytes(), Envelope.from_bytes),
        (exchange.query.to_bytes(), EvaluationKeys.from_bytes),
        (exchange.client.to_bytes(), lambda given: exchange._client.from_bytes(given, exchange.plan.public)),
        (bytes(400), lambda given: wire.parse(given, wire.QUERY, "query")),
        (bytes(400), lambda given: wire.parse_header(given, wire.QUERY, "query")),
    ):
        refused("bytes in a row, got a memoryview", read, memoryview(data)[::2])
        refused("Expected", read, memoryview(np.zeros((0, 4), np.uint8)))
    whole = memoryview(np.frombuffer(exchange.query.to_bytes(), np.uint8).reshape(1, -1))
    assert Envelope.from_bytes(whole).to_bytes() == exchange.query.to_bytes()


def test_keys_plans_and_public_plans_of_another_type_are_refused(exchange):
    for wrong in (None, b"", "s", 3, SMALL):
        refused("Expected plan as", exchange._server, *((wrong,) if exchange.keys is None else (wrong, exchange.keys)))
        refused("Expected public as a public plan", exchange._client, wrong)
        if exchange.keys is not None:
            refused("as EvaluationKeys, got", exchange._server, exchange.plan, wrong)
    if exchange.keys is None:
        return
    for field, values in {
        "steps": (None, [1], (None,), (-1,), (2**70,), ("1",)),
        "rotation": (None, "x"),
        "relinearisation": (None, 3),
        "plan": (None, b""),
        "key_id": (None, "x"),
    }.items():
        for value in values:
            changed = dataclasses.replace(exchange.keys, **{field: value})
            refused("Expected", exchange.make_server, changed)
            refused("Expected", changed.sealed)


def test_networks_of_numpys_numbers_have_the_same_plan():
    again = Network(tuple(dataclasses.replace(layer, inputs=np.int64(layer.inputs)) for layer in SMALL.layers))
    for make in (BatchedPlan.make, SinglePlan.make):
        exact = plan_digest(make(SMALL, input_range=(0, 1)).public)
        assert plan_digest(make(again, input_range=(np.float32(0), np.int64(1))).public) == exact
    # Sums of floats differ in the last bits between processors.
    public = SinglePlan.make(SMALL).public
    nearly = dataclasses.replace(public, error_bound=np.nextafter(public.error_bound, 1))
    assert plan_digest(nearly) == plan_digest(public)
    assert plan_digest(dataclasses.replace(public, error_bound=1.001 * public.error_bound)) != plan_digest(public)
    public = dataclasses.replace(BatchedPlan.make(SMALL).public, inputs=np.int64(4))
    assert plan_digest(public) == plan_digest(BatchedPlan.make(SMALL).public)
    refused("inputs to be a whole number", dataclasses.replace, SMALL.layers[0], inputs=None)


@pytest.mark.parametrize(
    "wrong", [(0,), (0, 1, 2), None, 5, "ab", (1, 0), (0, np.nan), ((0, 1), (1, 2)), ((0, 1), 2), {0, 1}]
)
def test_input_ranges_that_are_no_pair_are_refused(wrong):
    deep = dense_network(3, 4, 3, 3, 2)
    for make, what in (
        (BatchedPlan.make, SMALL),
        (SinglePlan.make, SMALL),
        (DeepPlan.make, deep),
        (SlotHead.make, HEAD),
    ):
        refused("Expected input_range", make, what, input_range=wrong)
