"""Logits in the coefficients of one product: where they lie, what is computed, and heads that need several."""

import numpy as np
import pytest

from tests.he.server.test_head import _check, _features
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.packing import coefficient
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.ring import ntt
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS, PARAMETERS


@pytest.mark.parametrize("shape", [(1, 1), (37, 7), (128, 10), (784, 10), (2048, 3)])
@pytest.mark.parametrize("samples", [1, 3])
def test_random_heads_under_the_sets_that_sanitise(sanitized_client, shape, samples):
    rng = np.random.default_rng(shape[0] + samples)
    kernel, bias = rng.normal(size=shape) * 0.2, rng.normal(size=shape[1]) * 0.1
    _check(sanitized_client, kernel, bias, _features(rng, samples, shape[0]))


@pytest.mark.parametrize("shape", [(37, 7), (128, 10), (784, 4)])
def test_features_at_the_ends_of_their_range(sanitized_client, shape):
    rng = np.random.default_rng(4)
    kernel, bias = rng.normal(size=shape), rng.normal(size=shape[1])
    signs = np.where(kernel.T[:2] >= 0, 1.0, -1.0)
    _check(sanitized_client, kernel, np.abs(bias), np.concatenate([signs, -signs]))
    _check(sanitized_client, np.ones(shape), -np.abs(bias), signs)


def test_polynomial_products_carry_the_logits():
    """Without encryption: the product of integers modulo X^N + 1, term by term."""
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (5, 7), (128, 16), (700, 10), (1500, 2), (2048, 2)):
        kernel, row = rng.integers(-9, 9, shape), rng.integers(-9, 9, shape[0])
        found = []
        positions = coefficient.logit_positions(*shape, PARAMETERS["bfv"])
        for polynomial, ends in zip(coefficient.weight_polynomials(kernel, PARAMETERS["bfv"]), positions, strict=True):
            product = np.convolve(polynomial, row)
            product[: len(product) - 2048] -= product[2048:]
            found.append(product[ends])
        assert np.array_equal(np.concatenate(found), row @ kernel)
        assert len(found) == PARAMETERS["bfv"].products(*shape)


@pytest.mark.parametrize(("shape", "products"), [((128, 10), 1), ((128, 16), 1), ((128, 17), 2), ((1025, 3), 3)])
def test_operations_are_counted(monkeypatch, bfv_client, shape, products):
    """A product of the two polynomials each, and nothing else: no transform, no rotation, no key."""
    counted = {"multiply": 0, "forward": 0, "inverse": 0}
    server, query = he.Server(np.ones(shape)), bfv_client.encrypt(np.ones((1, shape[0])), packing="coefficient")
    server.evaluate(query)
    for name in counted:
        plain = getattr(ntt.Transform, name)

        def counting(self, *arguments, plain=plain, name=name):
            counted[name] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(ntt.Transform, name, counting)
    reply = server.evaluate(query)
    assert counted == {"multiply": products, "forward": 0, "inverse": 0}
    assert len(query) == 132 + 2 * 2048 * 8 <= 36_000
    assert len(reply) == 132 + products * 2 * 2048 * 8


def test_slots_and_polynomials_are_inverse():
    rng = np.random.default_rng(1)
    for parameters in PARAMETERS.values():
        integers = rng.integers(-1000, 1000, parameters.poly_modulus_degree)
        if parameters.scheme == "bfv":
            back = coefficient.bfv_polynomial(coefficient.bfv_slots(integers, parameters), parameters)
            assert np.array_equal(back, integers)
        else:
            back = coefficient.ckks_polynomial(coefficient.ckks_slots(integers, parameters), parameters)
            np.testing.assert_allclose(back, integers, atol=1e-9)


def test_the_packing_that_sends_less_is_chosen(bfv_client, bfv_sanitized_client):
    def chosen(client, samples, columns, **options):
        query = client.encrypt(np.ones((samples, columns)), 1.0, **options)
        return wire.parse(query, wire.QUERY, "query")[0].packing

    assert chosen(bfv_client, 1, 128) == "coefficient"
    assert chosen(bfv_client, 64, 128) == "coefficient"
    assert chosen(bfv_client, 65, 128) == "batched"
    assert chosen(bfv_client, 65, 128, packing="coefficient") == "coefficient"
    assert chosen(bfv_sanitized_client, 3, 2) == "coefficient"
    with pytest.raises(InputError, match="packing to be one of coefficient"):
        chosen(bfv_sanitized_client, 3, 2, packing="batched")


@pytest.mark.parametrize("name", PARAMETERS)
def test_sets_are_within_the_table_and_leave_room_for_flooding(name):
    pinned = PARAMETERS[name]
    assert pinned.coeff_modulus_bits <= MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree]
    rng = np.random.default_rng(2)
    head = QuantizedHead.from_float(
        rng.normal(size=(128, 10)), np.ones(10), pinned, -pinned.feature_bits, pinned.packings[-1]
    )
    assert np.abs(head.kernel).max() >= 100
    load = limits.load(pinned, head.kernel, head.bias, head.packing)
    # A sanitising set's scale is a power of two.
    assert (0.5 if pinned.sanitizes else 0.99) < max(part.max() for part in load.values()) <= 1
    flooding = limits.flooding(pinned, 128, 10)
    if pinned.sanitizes:
        l1, l2 = np.abs(head.kernel).sum(), np.linalg.norm(head.kernel)
        noise = pinned.coefficient_noise_bound(l2) + l1 / 2
        assert flooding >= noise * 10 * 2**limits.FLOODING_BITS
        room = pinned.modulus / (2 * pinned.plaintext_modulus or 2)
        assert flooding + noise < room
    else:
        assert flooding == 0


def test_a_server_may_insist_on_sanitised_replies(client, sanitized_client):
    server = he.Server(np.ones((4, 2)), replies="sanitized")
    with pytest.raises(InputError, match="make keys with a sanitized scheme"):
        server.evaluate(client.encrypt(np.ones((1, 4))))
    assert server.evaluate(sanitized_client.encrypt(np.ones((1, 4))))
    with pytest.raises(InputError, match="replies"):
        he.Server(np.ones((4, 2)), replies="some")
