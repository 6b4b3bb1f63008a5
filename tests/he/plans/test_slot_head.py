"""A head in slots, naive and diagonal: counted operations, keys for the plan's steps only, and proved errors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.he.networks import answered
from tests.he.plans.test_single_image import PlainOperations
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.slots import SlotHeadClient
from tfprivacy_lab.he.plans.slot_head import LAYOUTS, MAX_INPUT_BITS, SlotHead
from tfprivacy_lab.he.ring.network_parameters import SLOTS
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS
from tfprivacy_lab.he.server.slots import SlotHeadServer

PACKINGS = ("naive", "diagonal")


def made_head(seed, features, classes):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(features, classes)) * 0.2, rng.normal(size=classes) * 0.1


@given(st.sampled_from(PACKINGS), st.integers(1, 128), st.integers(1, 128), st.integers(0, 5))
def test_slots_compute_the_head_by_the_operations_stated(packing, features, classes, seed):
    kernel, bias = made_head(seed, features, classes)
    layout, operations = LAYOUTS[packing](256, features, classes), PlainOperations()
    sample = np.random.default_rng(seed).uniform(-1, 1, features)
    found = layout.evaluate(operations, layout.pack(sample), layout.factors(kernel), layout.biases(bias))
    np.testing.assert_allclose(layout.logits(np.array(found)), sample @ kernel + bias, atol=1e-10)
    assert (len(operations.steps), operations.products) == (layout.rotations, layout.products)
    assert set(operations.steps) == set(layout.steps)
    assert len(found) == layout.replies


@pytest.mark.parametrize(
    ("shape", "packing", "products", "rotations", "keys", "replies"),
    [
        ((128, 10), "naive", 10, 70, 7, 10),
        ((128, 10), "diagonal", 1, 8, 8, 1),
        ((784, 128), "naive", 128, 1280, 10, 128),
        ((784, 128), "diagonal", 32, 3 + 7 + 5, 7, 1),
        ((2048, 1000), "diagonal", 512, 15 + 31 + 2, 4, 1),
    ],
)
def test_operations_keys_and_bytes_of_known_heads(shape, packing, products, rotations, keys, replies):
    kernel, bias = made_head(0, *shape)
    summary = SlotHead.make(kernel, bias, packing).public.summary()
    assert (summary["products"], summary["rotations"]) == (products, rotations)
    assert (summary["evaluation_keys"], len(summary["rotation_steps"])) == (keys, keys)
    assert summary["down_bytes"] == replies * 2 * 8192 * 8
    assert summary["up_bytes"] == 2 * 2 * 8192 * 8
    assert summary["coeff_modulus_bits"] <= MAX_COEFF_MODULUS_BITS[8192]
    assert SLOTS.coeff_modulus_bits == summary["coeff_modulus_bits"]


def session(kernel, bias, packing, input_range=(-1.0, 1.0)):
    plan = SlotHead.make(kernel, bias, packing, input_range)
    client = SlotHeadClient(plan.public)
    keys = client.evaluation_keys()
    return plan, client, keys, SlotHeadServer(plan, keys)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("shape", "largest"), [((1, 1), 1.0), ((37, 7), 3.0), ((128, 10), 1.0), ((784, 20), 1.0)])
def test_random_and_adversarial_samples(packing, shape, largest):
    kernel, bias = made_head(shape[0], *shape)
    plan, client, keys, server = session(kernel, bias, packing, (-largest, largest))
    signs = np.where(kernel[:, 0] >= 0, largest, -largest)
    for sample in (np.random.default_rng(1).uniform(-largest, largest, shape[0]), signs, -signs):
        query = client.encrypt(sample)
        reply = server.evaluate(query)
        error = np.abs(client.decrypt(reply, query) - sample @ kernel - bias).max()
        assert error <= plan.public.error_bound
        assert error < 1e-4
    summary = plan.public.summary()
    assert (query.nbytes, reply.nbytes) == (summary["up_bytes"], summary["down_bytes"])
    # SEAL's keys are these residues and some header: no key for a step that is not used.
    assert summary["key_bytes"] <= keys.bytes <= summary["key_bytes"] * 1.01 + (200_000 if keys.steps else 0)
    assert keys.relinearisation == b""


def test_zero_weights(tmp_path):
    for packing in PACKINGS:
        _, client, _, server = session(np.zeros((5, 3)), np.array([0.5, 0.0, -2.0]), packing)
        logits = answered(client, server, np.ones(5))
        np.testing.assert_allclose(logits, [0.5, 0.0, -2.0], atol=1e-4)


def test_missing_and_foreign_keys_are_refused_before_any_query():
    kernel, bias = made_head(0, 20, 3)
    plan, client, keys, _ = session(kernel, bias, "naive")
    with pytest.raises(InputError, match=r"none for rotation by \[8\]"):
        SlotHeadServer(plan, dataclasses.replace(keys, steps=(1, 2, 4, 16)).sealed())
    with pytest.raises(InputError, match="evaluation keys of these parameters"):
        SlotHeadServer(plan, dataclasses.replace(keys, rotation=b"", relinearisation=b"").sealed())
    with pytest.raises(InputError, match="evaluation keys for this plan"):
        SlotHeadServer(SlotHead.make(kernel, bias, "diagonal"), keys)
    client._library.rotateKeyGen(rot_steps=[1, 2])
    with pytest.raises(InputError, match="evaluation keys of these parameters"):
        SlotHeadServer(plan, dataclasses.replace(keys, rotation=client._library.to_bytes_rotate_key("none")).sealed())


def test_heads_and_ranges_that_cannot_be_are_refused():
    kernel, bias = made_head(0, 20, 3)
    with pytest.raises(InputError, match="packing"):
        SlotHead.make(kernel, bias, "rows")
    with pytest.raises(InputError, match="could overflow: features within -1e"):
        SlotHead.make(kernel, bias, "naive", (-1e15, 1e15))
    with pytest.raises(InputError, match="input_range"):
        SlotHead.make(kernel, bias, "naive", (1.0, 1.0))
    with pytest.raises(InputError, match="kernel"):
        SlotHead.make(np.full((2, 2), np.nan))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("size", [300.0, 1e5])
def test_magnitudes_that_fill_the_primes_do_not_wrap(packing, size):
    kernel, bias = made_head(3, 40, 4)
    plan, client, _, server = session(kernel * size, bias, packing)
    assert plan.public.input_bits < MAX_INPUT_BITS
    sample = np.where(kernel[:, 0] >= 0, 1.0, -1.0)
    logits, expected = answered(client, server, sample), sample @ kernel * size + bias
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(expected).max() * plan.public.output_scale * 2 < SLOTS.primes[0]
