"""Packing: slots and back, exact modular products, and biases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfprivacy_lab.he.packing import batched
from tfprivacy_lab.he.ring.parameters import PARAMETERS

Q = PARAMETERS["bfv"].modulus


@pytest.mark.parametrize("samples", [1, 5, 1024, 1025, 2048])
@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_slots_give_the_samples_back_padded_with_zeros(scheme, samples):
    rows = np.random.default_rng(0).normal(size=(samples, 3))
    slots = batched.block_slots(rows, PARAMETERS[scheme])
    assert slots.flags.c_contiguous
    for column in range(3):
        back = batched.block_samples(slots[column], PARAMETERS[scheme])
        assert back.shape == (2048,)
        np.testing.assert_array_equal(back[:samples], rows[:, column])
        assert not back[samples:].any()


@pytest.mark.parametrize(("samples", "blocks"), [(1, 1), (2048, 1), (2049, 2), (4097, 3)])
def test_block_count(samples, blocks):
    assert batched.block_count(samples, PARAMETERS["bfv"]) == blocks


def _exact(weights, residues, modulus):
    product = np.asarray(weights, dtype=object) @ np.asarray(residues, dtype=object)
    return np.vectorize(lambda value: value % modulus, otypes=[object])(product)


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.sampled_from([Q, 2**53 - 111, 12289]))
def test_modular_product_equals_python_integers(data, classes, features, columns, modulus):
    largest = 2**26 // features
    weights = data.draw(
        st.lists(st.integers(-largest, largest), min_size=classes * features, max_size=classes * features)
    )
    residues = data.draw(
        st.lists(st.integers(0, modulus - 1), min_size=features * columns, max_size=features * columns)
    )
    weights = np.array(weights, dtype=np.int64).reshape(classes, features)
    residues = np.array(residues, dtype=np.uint64).reshape(features, columns)
    result = batched.modular_matmul(weights, residues, modulus)
    assert result.dtype == np.uint64
    assert (result.astype(object) == _exact(weights, residues, modulus)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_modular_product_is_exact_at_its_bound_and_across_chunks(sign):
    features, columns = 2048, 700
    weights = np.full((2, features), sign * 2**26 // features)
    weights[1, ::2] *= -1
    residues = np.full((features, columns), Q - 1, dtype=np.uint64)
    residues[:, -1] = np.random.default_rng(0).integers(0, Q, size=features, dtype=np.uint64)
    result = batched.modular_matmul(weights, residues, Q)
    edges = [0, 1, 511, 512, columns - 1]
    assert (result[:, edges].astype(object) == _exact(weights, residues[:, edges], Q)).all()


def test_weights_beyond_the_exact_range_are_refused():
    with pytest.raises(AssertionError, match="too large"):
        batched.modular_matmul(np.array([[2**26, 1]]), np.zeros((2, 1), np.uint64), Q)
    with pytest.raises(AssertionError):
        batched.modular_matmul(np.array([[1]]), np.zeros((1, 1), np.uint64), 2**54)


def test_bias_residues_of_bfv_round_as_the_plaintext_encoding_does():
    parameters = PARAMETERS["bfv"]
    t = parameters.plaintext_modulus
    bias = np.array([0, 1, -1, 12345, -(t - 1) // 2, (t - 1) // 2])
    result = batched.bias_residues(bias, parameters)
    assert not result[:, 1:].any()
    for value, residue in zip(bias, result[:, 0], strict=True):
        distance = (int(residue) - Q * int(value) / t) % Q
        assert min(distance, Q - distance) <= 1  # float arithmetic of the check itself adds up to a half


def test_modular_addition_wraps_in_place():
    target = np.array([0, 5, Q - 1], dtype=np.uint64)
    batched.add_modular(target, np.array([0, Q - 5, Q - 1], dtype=np.uint64), Q)
    assert target.tolist() == [0, 0, Q - 2]
