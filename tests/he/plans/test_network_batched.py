"""Batches under encryption: BFV exact against the integer oracle, CKKS within its stated bound."""

import numpy as np
import pytest

from tests.he.networks import aligned_inputs, answered, dense, dense_network, resealed
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.inputs import quantise
from tfprivacy_lab.he.client.network import NetworkClient
from tfprivacy_lab.he.messages.residues import reduce_floats, square
from tfprivacy_lab.he.plans.layers import Affine, Network
from tfprivacy_lab.he.plans.network import BatchedPlan, integer_logits
from tfprivacy_lab.he.ring.network_parameters import BATCHED
from tfprivacy_lab.he.server.network import NetworkServer


def _evaluated(network, inputs, scheme, input_range=(0.0, 1.0)):
    plan = BatchedPlan.make(network, scheme, input_range)
    client = NetworkClient(plan.public)
    with NetworkServer(plan, processes=2) as server:
        query = client.encrypt(inputs)
        reply = server.evaluate(query)
    logits = client.decrypt(reply, query, len(inputs))
    assert logits.shape == (len(inputs), network.outputs)
    assert np.abs(logits - network.evaluate(inputs)).max() <= plan.public.error_bound
    return plan, client, reply, logits


@pytest.mark.parametrize(
    ("widths", "samples"),
    [((1, 1, 1), 1), ((13, 7, 3), 5), ((5, 3, 2), 2049), ((40, 9, 6), 4097), ((7, 5, 4, 3), 4097)],
)
def test_random_networks_in_ckks(widths, samples):
    network = dense_network(sum(widths), *widths)
    inputs = np.random.default_rng(samples).random((samples, widths[0]))
    *_, logits = _evaluated(network, inputs, "ckks")
    # Far nearer than the proved bound, which has to hold for the worst inputs.
    assert np.abs(logits - network.evaluate(inputs)).max() < 5e-3


@pytest.mark.parametrize(("widths", "samples"), [((1, 1, 1), 1), ((13, 7, 3), 5), ((3, 5, 2), 8193)])
def test_random_networks_in_bfv_are_exact(widths, samples):
    network = dense_network(sum(widths), *widths)
    inputs = np.random.default_rng(samples).random((samples, widths[0]))
    plan, client, reply, _ = _evaluated(network, inputs, "bfv")
    expected = integer_logits(plan, quantise(inputs, plan.public))
    np.testing.assert_array_equal(client.decrypt_integers(reply, "any", samples), expected)


@pytest.mark.parametrize("scheme", ["ckks", "bfv"])
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-3.0, 2.0)])
def test_inputs_at_the_ends_of_their_range_aligned_with_the_weights(scheme, input_range):
    network = dense_network(1, 11, 6, 3)
    inputs = aligned_inputs(network, *input_range)
    plan, client, reply, _ = _evaluated(network, inputs, scheme, input_range)
    if scheme == "bfv":
        expected = integer_logits(plan, quantise(inputs, plan.public))
        np.testing.assert_array_equal(client.decrypt_integers(reply, "any", len(inputs)), expected)


@pytest.mark.parametrize(("scheme", "samples"), [("ckks", 2048), ("bfv", 8192)])
def test_all_slots_at_the_end_of_the_range_that_fills_the_modulus(scheme, samples):
    ones = Affine(np.ones((4, 2)), np.ones(2), np.arange(4)[np.newaxis], 4)
    network = Network((ones, Affine(np.ones((2, 1)), np.ones(1), np.arange(2)[np.newaxis], 2)))
    plan, *_, logits = _evaluated(network, np.ones((samples, 4)), scheme)
    assert max(plan.load.values()) > 0.05
    np.testing.assert_allclose(logits, 51.0, rtol=1e-3)


def test_convolutions_and_two_squares():
    rng = np.random.default_rng(2)
    windows = np.array([[0, 1, -1], [2, 3, 4], [5, -1, 0]])
    convolution = Affine(rng.normal(size=(3, 2)), rng.normal(size=2), windows, 6)
    network = Network((convolution, dense(rng, 6, 4), dense(rng, 4, 3)))
    inputs = np.concatenate([rng.random((9, 6)), aligned_inputs(network, 0.0, 1.0)])
    _evaluated(network, inputs.reshape(-1, 3, 2), "ckks")
    _evaluated(Network((convolution, dense(rng, 6, 3))), inputs, "bfv")


@pytest.mark.parametrize("scheme", ["ckks", "bfv"])
def test_zero_weights(scheme):
    zeros = Affine(np.zeros((3, 2)), np.array([0.5, -2.0]), np.arange(3)[np.newaxis], 3)
    network = Network((zeros, Affine(np.eye(2), np.zeros(2), np.arange(2)[np.newaxis], 2)))
    *_, logits = _evaluated(network, np.random.default_rng(0).random((3, 3)), scheme)
    np.testing.assert_allclose(logits, [[0.25, 4.0]] * 3, atol=0.02)


def test_first_layer_noise_is_below_its_bound_and_not_absurdly():
    plan = BatchedPlan.make(dense_network(7, 4, 3, 2))
    client = NetworkClient(plan.public)
    inputs = np.zeros((2048, 4))
    parameters = plan.public.parameters
    # The first layer alone: identity of the query, decrypted as a reply of two polynomials would be.
    from tfprivacy_lab.he.ring.seal import PyCtxt
    from tfprivacy_lab.he.ring.seal_context import ciphertext_prefix

    for residues in client.encrypt(inputs).residues[0]:
        data = ciphertext_prefix(parameters) + residues.astype("<u8").tobytes()
        noise = client._library.decryptFrac(PyCtxt(pyfhel=client._library, bytestring=data, scheme="ckks"))
        assert parameters.slot_noise_bound() / 200 < np.abs(noise).max() <= parameters.slot_noise_bound()


@pytest.mark.parametrize("modulus", [*BATCHED["ckks", 2].primes[:1], 12289])
def test_residue_arithmetic_equals_python_integers_at_its_ends(modulus):
    sums = np.array(
        [0, 1, -1, modulus, -modulus, 2**53 - modulus, modulus - 2**53, modulus - 1, 12345 * modulus - 1], np.float64
    )
    expected = [int(value) % modulus for value in sums]
    assert reduce_floats(sums, modulus).tolist() == expected
    top = np.full((1, 3, 2), modulus - 1, np.uint64)
    top[0, :, 1] = np.random.default_rng(0).integers(0, modulus, 3, dtype=np.uint64)
    for place in range(2):
        c = [int(value) for value in top[0, :, place]]
        product = [sum(c[i] * c[k - i] for i in range(3) if 0 <= k - i < 3) % modulus for k in range(5)]
        assert square(top, modulus)[0, :, place].tolist() == product


@pytest.fixture(scope="module")
def exchange():
    plan = BatchedPlan.make(dense_network(8, 4, 3, 2))
    client = NetworkClient(plan.public)
    query = client.encrypt(np.full((3, 4), 0.5))
    server = NetworkServer(plan)
    return client, server, query, server.evaluate(query)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (np.full((2, 4), np.nan), "inputs to be finite"),
        (np.full((2, 5), 0.1), r"inputs of shape \(samples, 4\)"),
        (np.zeros((0, 4)), "inputs of shape"),
        (np.zeros(4), "inputs of shape"),
        (np.full((2, 4), 1.5), r"within input_range=0\.\.1, got 1\.5"),
        (np.full((2, 4), -0.1), r"within input_range=0\.\.1, got -0\.1"),
        ([["a"] * 4], "real numbers"),
        (np.zeros((2, 4), complex), "real numbers"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(exchange, inputs, reason):
    with pytest.raises(InputError, match=reason) as error:
        exchange[0].encrypt(inputs)
    assert "\n" not in str(error.value)


def test_strided_and_integer_inputs_are_encrypted_as_they_are(exchange):
    client, server, _, _ = exchange
    inputs = np.asfortranarray(np.random.default_rng(0).integers(0, 2, size=(8, 10)))[::2, ::-3]
    logits = answered(client, server, inputs)
    expected = answered(client, server, np.ascontiguousarray(inputs, float))
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_residues_that_are_not_are_refused(exchange):
    client, server, sealed, answer = exchange
    query, reply = sealed.residues, answer.residues
    for bad, reason in [
        (query.astype(np.uint64), "query of dtype uint32, got uint64"),
        (query[:, :3], "query of shape"),
        (query[0], "query of shape"),
        (query[:0], "query of shape"),
        (np.full_like(query, 2**32 - 1), "residues of query below their prime"),
        (np.concatenate([query, query]), "query of 1 blocks for 3, got 2"),
    ]:
        with pytest.raises(InputError, match=reason):
            server.evaluate(resealed(sealed, bad))
    with pytest.raises(InputError, match="query as an Envelope, got list"):
        server.evaluate(query.tolist())
    for bad, reason in [
        (reply[:, :1], "reply of shape"),
        (np.full_like(reply, 2**31), "residues of reply"),
        (np.concatenate([reply, reply]), "reply of 1 blocks for 3 samples, got 2"),
    ]:
        with pytest.raises(InputError, match=reason):
            client.decrypt(resealed(answer, bad), sealed)
    with pytest.raises(InputError, match="a reply of 4 samples, got one of 3"):
        client.decrypt(answer, sealed, 4)
    np.testing.assert_array_equal(client.decrypt(answer, "any"), client.decrypt(answer, sealed, 3))
    with pytest.raises(InputError, match="bfv client"):
        client.decrypt_integers(answer, sealed)
    with pytest.raises(InputError, match="processes"):
        NetworkServer(server._plan, processes=0)
