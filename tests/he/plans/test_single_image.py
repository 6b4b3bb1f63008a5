"""One encrypted image: slots against a plain matrix product, operation counts, bounds, and keys that must be there."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.he.networks import aligned_inputs, answered, dense_network, resealed
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.slots import SingleImageClient
from tfprivacy_lab.he.packing.diagonal import Diagonals
from tfprivacy_lab.he.plans.layers import Affine, Network
from tfprivacy_lab.he.plans.single_image import MAX_INPUT_BITS, SinglePlan
from tfprivacy_lab.he.server.slots import SingleImageServer


class PlainOperations:
    """Slots as NumPy vectors, and a count of what is asked."""

    def __init__(self):
        self.steps, self.products = [], 0

    def rotate(self, vector, step):
        self.steps.append(step)
        return np.roll(vector, -step)

    def multiply(self, vector, factor):
        self.products += 1
        return vector * factor

    add = staticmethod(np.add)
    add_bias = staticmethod(np.add)
    square = staticmethod(np.square)

    def rescale(self, vector):
        return vector


def _plain(network, image, slots=4096):
    plan = Diagonals(slots, network.inputs, network.layers[0].outputs, network.outputs)
    first, second = network.layers
    operations = PlainOperations()
    replies = plan.evaluate(
        operations,
        plan.pack(image),
        plan.first_layer(first.dense_kernel()),
        plan.first_bias(first.full_bias()),
        plan.second_layer(second.dense_kernel()),
        plan.second_bias(second.full_bias()),
    )
    return plan, operations, plan.logits(np.array(replies))


@given(st.integers(1, 128), st.integers(1, 128), st.integers(1, 40), st.integers(0, 5))
def test_slots_compute_the_network(inputs, hidden, outputs, seed):
    network = dense_network(seed, inputs, hidden, outputs)
    image = np.random.default_rng(seed).uniform(-1, 1, size=inputs)
    plan, operations, logits = _plain(network, image, slots=256)
    np.testing.assert_allclose(logits, network.evaluate(image[np.newaxis])[0], atol=1e-10)
    assert len(operations.steps) == plan.rotations
    assert operations.products == plan.products
    assert set(operations.steps) == set(plan.steps)


def test_operations_for_mnist():
    network = dense_network(0, 784, 128, 10)
    plan, operations, _ = _plain(network, np.ones(784))
    assert (plan.rotations, plan.products) == (22, 33)
    assert plan.steps == tuple(2**bit for bit in range(12))
    assert (len(operations.steps), operations.products) == (22, 33)
    summary = SinglePlan.make(network).public.summary()
    assert summary["key_bytes"] < 21e6
    assert summary["coeff_modulus_bits"] <= 214


def test_widths_beyond_the_slots_are_refused():
    with pytest.raises(InputError, match="hidden of at most 128, got 129"):
        Diagonals(256, 4, 129, 2)


def _session(network, input_range=(0.0, 1.0)):
    plan = SinglePlan.make(network, input_range)
    client = SingleImageClient(plan.public)
    return plan, client, SingleImageServer(plan, client.evaluation_keys())


@pytest.mark.parametrize("widths", [(1, 1, 1), (37, 20, 3), (300, 7, 600), (784, 128, 10)])
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 3.0)])
def test_random_and_adversarial_images(widths, input_range):
    network = dense_network(sum(widths), *widths)
    plan, client, server = _session(network, input_range)
    images = np.concatenate(
        [
            np.random.default_rng(0).uniform(*input_range, size=(2, widths[0])),
            aligned_inputs(network, *input_range)[-4:],
        ]
    )
    for image, expected in zip(images, network.evaluate(images), strict=True):
        error = np.abs(answered(client, server, image) - expected).max()
        assert error <= plan.public.error_bound
        assert error < 1e-3 * (1 + np.abs(expected).max())


def test_zero_weights_and_convolutions():
    zeros = Affine(np.zeros((6, 2)), np.array([0.5, -2.0]), np.arange(6)[np.newaxis], 6)
    nothing = Affine(np.zeros((2, 2)), np.array([1.0, 0.0]), np.arange(2)[np.newaxis], 2)
    _, client, server = _session(Network((zeros, nothing)))
    logits = answered(client, server, np.ones(6))
    np.testing.assert_allclose(logits, [1.0, 0.0], atol=1e-3)
    rng = np.random.default_rng(1)
    convolution = Affine(rng.normal(size=(3, 2)), np.ones(2), np.array([[0, 1, -1], [2, 3, 4], [5, -1, 0]]), 6)
    network = Network((convolution, dense_network(1, 6, 2, 2).layers[0]))
    _, client, server = _session(network)
    image = rng.random((2, 3))
    logits = answered(client, server, image)
    np.testing.assert_allclose(logits, network.evaluate(image[np.newaxis])[0], atol=1e-3)


@pytest.fixture(scope="module")
def session():
    plan = SinglePlan.make(dense_network(3, 20, 8, 3))
    client = SingleImageClient(plan.public)
    return plan, client, client.evaluation_keys()


def test_missing_keys_are_refused_before_any_query(session):
    plan, client, keys = session
    with pytest.raises(InputError, match=r"none for rotation by \[1024\]"):
        SingleImageServer(plan, dataclasses.replace(keys, steps=tuple(s for s in keys.steps if s != 1024)).sealed())
    with pytest.raises(InputError, match="relinearisation"):
        SingleImageServer(plan, dataclasses.replace(keys, relinearisation=b"").sealed())
    client._library.rotateKeyGen(rot_steps=[1, 2])
    fewer = dataclasses.replace(keys, rotation=client._library.to_bytes_rotate_key("none")).sealed()
    with pytest.raises(InputError, match="evaluation keys of these parameters"):
        SingleImageServer(plan, fewer)
    with pytest.raises(InputError, match="evaluation keys of these parameters"):
        SingleImageServer(plan, dataclasses.replace(keys, rotation=b"nothing of the sort" * 9).sealed())


def test_images_queries_and_replies_that_are_not_are_refused(session):
    plan, client, keys = session
    server = SingleImageServer(plan, keys)
    query = client.encrypt(np.ones(20))
    reply = server.evaluate(query)
    for image, reason in [(np.ones(19), "inputs of shape"), (np.full(20, np.nan), "finite"), (np.full(20, 2), "got 2")]:
        with pytest.raises(InputError, match=reason):
            client.encrypt(image)
    residues, answer = query.residues, reply.residues
    for bad in (residues[:1], residues.astype(np.int64), np.full_like(residues, 2**62)):
        with pytest.raises(InputError, match="query"):
            server.evaluate(resealed(query, bad))
    for bad in (answer[:, :1], answer.astype(float), np.full_like(answer, 2**62)):
        with pytest.raises(InputError, match="reply"):
            client.decrypt(resealed(reply, bad), query)
    for bad in (None, residues.tolist(), residues):
        with pytest.raises(InputError, match="query as an Envelope"):
            server.evaluate(bad)


def test_plans_without_room_and_secret_holders_that_travel_are_refused(session):
    with pytest.raises(InputError, match="one square for a single image"):
        SinglePlan.make(dense_network(1, 4, 3, 2, 2))
    with pytest.raises(InputError, match="could overflow"):
        SinglePlan.make(dense_network(1, 4, 3, 2), (-1e9, 1e9))
    with pytest.raises(TypeError, match="secret key"):
        pickle.dumps(session[1])


@pytest.mark.parametrize("size", [300.0, 5000.0])
def test_magnitudes_that_fill_the_primes_do_not_wrap(size):
    """Where the limits bind, the finest scale is taken, and inputs at the ends of their range decrypt right."""
    plain = dense_network(9, 12, 8, 3)
    first = plain.layers[0]
    network = Network((Affine(first.kernel * size, first.bias, first.windows, first.inputs), *plain.layers[1:]))
    plan, client, server = _session(network)
    assert plan.public.input_bits < MAX_INPUT_BITS
    images = aligned_inputs(network, 0.0, 1.0)
    expected = network.evaluate(images)
    worst = np.argmax(np.abs(expected).max(axis=1))
    logits = answered(client, server, images[worst])
    assert np.abs(logits - expected[worst]).max() <= 1e-3 * np.abs(expected[worst]).max()
    assert np.abs(expected).max() * plan.public.output_scale * 2 < plan.public.parameters.primes[0]
