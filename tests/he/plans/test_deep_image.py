"""One image, two squares: slots against a plain network, counted operations, bounds that hold, and keys."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.he.networks import aligned_inputs, answered, dense_network, resealed
from tests.he.plans.test_single_image import PlainOperations
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.slots import SingleImageClient
from tfprivacy_lab.he.packing.two_diagonals import DeepLayout
from tfprivacy_lab.he.plans.deep_image import DeepPlan
from tfprivacy_lab.he.plans.layers import Affine, Network
from tfprivacy_lab.he.plans.single_image import MAX_INPUT_BITS
from tfprivacy_lab.he.server.slots import DeepImageServer


def plain(network, image, slots):
    """The layout on NumPy vectors."""
    first, second, third = network.layers
    layout = DeepLayout(slots, network.inputs, first.outputs, second.outputs, network.outputs)
    operations = PlainOperations()
    replies = layout.evaluate(
        operations,
        layout.pack(image),
        layout.start.first_layer(first.dense_kernel()),
        layout.start.first_bias(first.full_bias()),
        layout.middle_layer(second.dense_kernel()),
        layout.end.first_bias(second.full_bias()),
        layout.end.second_layer(third.dense_kernel()),
        layout.end.second_bias(third.full_bias()),
    )
    return layout, operations, layout.logits(np.array(replies))


@given(st.integers(1, 128), st.integers(1, 128), st.integers(1, 64), st.integers(1, 40), st.integers(0, 5))
def test_slots_compute_the_network_by_the_operations_stated(inputs, first, second, outputs, seed):
    second = min(first, second)
    network = dense_network(seed, inputs, first, second, outputs)
    image = np.random.default_rng(seed).uniform(-1, 1, inputs)
    layout, operations, logits = plain(network, image, 256)
    np.testing.assert_allclose(logits, network.evaluate(image[np.newaxis])[0], atol=1e-10)
    assert (len(operations.steps), operations.products) == (layout.rotations, layout.products)
    assert set(operations.steps) == set(layout.steps)


def test_operations_for_a_convolutional_network_on_mnist():
    layout, operations, _ = plain(dense_network(0, 784, 720, 100, 10), np.ones(784), 8192)
    assert (layout.rotations, layout.products) == (60, 257)
    assert (len(operations.steps), operations.products) == (60, 257)
    assert layout.steps == tuple(2**bit for bit in range(13))
    summary = DeepPlan.make(dense_network(0, 784, 720, 100, 10)).public.summary()
    assert summary["evaluation_keys"] == 14
    assert summary["coeff_modulus_bits"] <= 430


def session(network, input_range=(0.0, 1.0)):
    plan = DeepPlan.make(network, input_range)
    client = SingleImageClient(plan.public)
    keys = client.evaluation_keys()
    return plan, client, keys, DeepImageServer(plan, keys)


@pytest.mark.slow_but("input_range0-*")
@pytest.mark.parametrize("widths", [(1, 1, 1, 1), (37, 20, 9, 3), (100, 60, 60, 5)])
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 3.0)])
def test_random_and_adversarial_images(widths, input_range):
    network = dense_network(sum(widths), *widths)
    plan, client, keys, server = session(network, input_range)
    images = np.concatenate(
        [
            np.random.default_rng(0).uniform(*input_range, size=(1, widths[0])),
            aligned_inputs(network, *input_range)[-3:],
        ]
    )
    for image, expected in zip(images, network.evaluate(images), strict=True):
        query = client.encrypt(image)
        reply = server.evaluate(query)
        error = np.abs(client.decrypt(reply, query) - expected).max()
        assert error <= plan.public.error_bound
        assert error < 1e-3 * (1 + np.abs(expected).max())
    summary = plan.public.summary()
    assert (query.nbytes, reply.nbytes) == (summary["up_bytes"], summary["down_bytes"])
    assert summary["key_bytes"] <= keys.bytes <= summary["key_bytes"] * 1.01 + 200_000


def test_convolutions_and_zero_weights():
    rng = np.random.default_rng(1)
    convolution = Affine(rng.normal(size=(3, 2)), np.ones(2), np.array([[0, 1, -1], [2, 3, 4], [5, -1, 0]]), 6)
    nothing = Affine(np.zeros((6, 3)), np.array([0.5, -1.0, 2.0]), np.arange(6)[np.newaxis], 6)
    for second in (dense_network(1, 6, 3, 2).layers[0], nothing):
        network = Network((convolution, second, dense_network(2, 3, 2, 2).layers[0]))
        _, client, _, server = session(network)
        image = rng.random((2, 3))
        logits = answered(client, server, image)
        np.testing.assert_allclose(logits, network.evaluate(image[np.newaxis])[0], atol=1e-3)


def test_what_cannot_be_is_refused():
    network = dense_network(3, 20, 8, 5, 3)
    plan, client, keys, server = session(network)
    with pytest.raises(InputError, match=r"none for rotation by \[1024\]"):
        DeepImageServer(plan, dataclasses.replace(keys, steps=tuple(s for s in keys.steps if s != 1024)).sealed())
    with pytest.raises(InputError, match="relinearisation keys are not"):
        DeepImageServer(plan, dataclasses.replace(keys, relinearisation=keys.relinearisation[:-8]).sealed())
    query = client.encrypt(np.ones(20))
    reply = server.evaluate(query)
    for bad in (query.residues[:1], np.full_like(query.residues, 2**62)):
        with pytest.raises(InputError, match="query"):
            server.evaluate(resealed(query, bad))
    above = reply.residues.copy()
    above[0, 1, 1, 7] = plan.public.parameters.primes[1]
    for bad in (reply.residues[:, :, :1], above):
        with pytest.raises(InputError, match="reply"):
            client.decrypt(resealed(reply, bad), query)
    with pytest.raises(InputError, match="two squares, got 1"):
        DeepPlan.make(dense_network(1, 4, 3, 2))
    with pytest.raises(InputError, match="no wider than the first"):
        DeepPlan.make(dense_network(1, 4, 3, 9, 2))
    with pytest.raises(InputError, match="could overflow"):
        DeepPlan.make(network, (-1e12, 1e12))
    choice = he.choose_network(network, samples=1)
    assert "two squares" in "\n".join(choice.explain()) or choice.summary["packing"] == "batched"


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_magnitudes_that_fill_the_primes_do_not_wrap(size):
    """Where the limits bind, the finest scale is taken, and inputs at the ends of their range decrypt right."""
    plain = dense_network(9, 12, 8, 6, 3)
    first = plain.layers[0]
    network = Network((Affine(first.kernel * size, first.bias, first.windows, first.inputs), *plain.layers[1:]))
    plan, client, *_, server = session(network)
    assert plan.public.input_bits < MAX_INPUT_BITS
    images = aligned_inputs(network, 0.0, 1.0)
    expected = network.evaluate(images)
    worst = np.argmax(np.abs(expected).max(axis=1))
    logits = answered(client, server, images[worst])
    assert np.abs(logits - expected[worst]).max() <= 1e-3 * np.abs(expected[worst]).max()
    assert np.abs(expected).max() * plan.public.output_scale * 2 < math.prod(plan.public.parameters.primes[:2])
