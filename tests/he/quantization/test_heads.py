"""Quantisation: steps, refusals, proved limits, and the stated error."""

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.quantization.heads import (
    QuantizedHead,
    dequantize_logits,
    integer_logits,
)
from tfprivacy_lab.he.quantization.steps import Steps, feature_steps, quantize_features
from tfprivacy_lab.he.ring.parameters import PARAMETERS

BFV, CKKS = PARAMETERS["bfv"], PARAMETERS["ckks"]


@pytest.mark.parametrize(
    ("largest", "feature_range", "exponent"),
    [(1.0, None, -12), (1.0001, None, -11), (0.3, None, -13), (0.3, 1.0, -12), (0.0, None, -12), (0.0, 4.0, -10)],
)
def test_step_is_the_smallest_power_of_two_that_holds_the_range(largest, feature_range, exponent):
    assert feature_steps(np.array([[0.0, -largest]]), BFV, feature_range) == Steps(exponent)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-5, 1.0, 2.0**40, 1e30])
@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_integers_stay_within_the_bound_and_half_a_step(parameters, magnitude):
    features = np.random.default_rng(0).uniform(-magnitude, magnitude, size=(50, 7))
    features[0, 0] = magnitude
    integers, exponent = quantize_features(features, parameters)
    assert integers.dtype == np.int64
    assert np.abs(integers).max() <= parameters.max_feature
    assert np.abs(integers).max() > parameters.max_feature // 2 - 1
    assert np.abs(np.ldexp(integers.astype(float), exponent) - features).max() <= 2.0**exponent / 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64, bool])
def test_number_types_and_layouts_give_the_same_integers(dtype):
    features = np.asfortranarray(np.arange(12).reshape(3, 4).T % 2, dtype=dtype)[::2]
    integers, _ = quantize_features(features, BFV)
    np.testing.assert_array_equal(integers, features.astype(int) * BFV.max_feature)


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ([[np.nan, 1.0]], "finite"),
        ([[np.inf, 1.0]], "finite"),
        (np.zeros((0, 4)), "non-empty"),
        (np.zeros((4, 0)), "non-empty"),
        (np.zeros(4), "non-empty array"),
        ([["a"]], "real numbers"),
        ([[1 + 1j]], "real numbers"),
        (np.zeros((1, 2049)), "at most 2048"),
        ([[1e300]], "rescale"),
        ([[1e-300]], "rescale"),
    ],
)
def test_features_that_cannot_be_used_are_refused(features, reason):
    with pytest.raises(InputError, match=reason):
        quantize_features(features, BFV)


@pytest.mark.parametrize("feature_range", [0, -1.0, np.nan, np.inf, "wide"])
def test_feature_range_must_be_positive(feature_range):
    with pytest.raises(InputError, match="feature_range"):
        quantize_features([[0.5]], BFV, feature_range)


def test_feature_beyond_its_range_is_refused():
    with pytest.raises(InputError, match=r"within feature_range=1, got a magnitude of 1\.5"):
        quantize_features([[0.5, -1.5]], BFV, 1.0)


@pytest.mark.parametrize("parameters", [BFV, CKKS])
@pytest.mark.parametrize("shape", [(1, 1), (37, 7), (128, 10), (2048, 1000)])
def test_head_fills_the_limit_but_never_passes_it(parameters, shape):
    rng = np.random.default_rng(shape[0])
    kernel, bias = rng.normal(size=shape), rng.normal(size=shape[1])
    head = QuantizedHead.from_float(kernel, bias, parameters, -parameters.feature_bits)
    load = limits.load(parameters, head.kernel, head.bias)
    assert 0.9 < max(part.max() for part in load.values()) <= 1
    if parameters is BFV:
        largest = np.abs(head.kernel).sum(axis=0) * BFV.max_feature + np.abs(head.bias)
        assert largest.max() <= (BFV.plaintext_modulus - 1) // 2
    np.testing.assert_allclose(head.kernel / head.weight_scale, kernel, atol=0.5 / head.weight_scale)


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e200])
def test_scale_of_the_head_does_not_matter(factor):
    rng = np.random.default_rng(3)
    kernel, bias = rng.normal(size=(20, 3)), rng.normal(size=3)
    plain = QuantizedHead.from_float(kernel, bias, BFV, -12)
    scaled = QuantizedHead.from_float(kernel * factor, bias * factor, BFV, -12)
    assert np.abs(plain.kernel - scaled.kernel).max() <= np.abs(plain.kernel).max() * 0.02 + 1
    assert scaled.weight_scale == pytest.approx(plain.weight_scale / factor, rel=0.02)


def test_bias_that_crowds_out_the_kernel_is_refused():
    with pytest.raises(InputError, match=r"could overflow: a bias of 1e.06 .* larger feature_range") as error:
        QuantizedHead.from_float(np.ones((128, 2)), [0.0, 1e6], BFV, -12)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="could overflow"):
        QuantizedHead.from_float(np.ones((4, 2)), [1.0, 1.0], BFV, -12 - 100)


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_explicit_integers_beyond_a_limit_are_refused(parameters):
    limit = int((parameters.plaintext_modulus or parameters.modulus / 2**0.5) // 2 / parameters.max_feature)
    kernel = np.zeros((2, 3), dtype=np.int64)
    kernel[0, 1], bias = limit * 0.99, np.zeros(3, dtype=np.int64)
    if parameters is CKKS:
        QuantizedHead(kernel, bias, 1.0, 0, parameters)
    kernel[1, 1] = -(limit // 10)
    with pytest.raises(InputError, match=r"The head could overflow: column 1 .* lower weight_scale"):
        QuantizedHead(kernel, bias, 1.0, 0, parameters)


def test_explicit_bias_is_allowed_up_to_the_last_integer():
    half = (BFV.plaintext_modulus - 1) // 2
    kernel = np.full((1, 1), 100)
    QuantizedHead(kernel, np.array([half - 100 * BFV.max_feature]), 1.0, 0, BFV)
    with pytest.raises(InputError, match="integer range"):
        QuantizedHead(kernel, np.array([half - 100 * BFV.max_feature + 1]), 1.0, 0, BFV)


def test_explicit_kernel_beyond_the_room_for_noise_is_refused():
    limit = BFV.modulus / (2 * BFV.plaintext_modulus) / (BFV.coefficient_noise_bound() + 0.5)
    QuantizedHead(np.array([[int(limit * 0.999)]]), np.array([0]), 1.0, 0, BFV)
    with pytest.raises(InputError, match="noise room"):
        QuantizedHead(np.array([[int(limit * 1.001)]]), np.array([0]), 1.0, 0, BFV)


@pytest.mark.parametrize(
    ("kernel", "bias", "reason"),
    [
        ([[np.nan]], [0.0], "kernel to be finite"),
        ([[1.0]], [np.inf], "bias to be finite"),
        ([[1.0]], [0.0, 1.0], "bias of shape"),
        ([[1.0]], 0.0, "bias of shape"),
        ([1.0], [0.0], "kernel to be a non-empty array"),
        (np.ones((2049, 1)), [0.0], "at most 2048 inputs"),
        (np.ones((1, 1001)), np.zeros(1001), "1000 outputs"),
        ([[1.0]], ["x"], "bias to hold real numbers"),
    ],
)
def test_heads_that_cannot_be_used_are_refused(kernel, bias, reason):
    with pytest.raises(InputError, match=reason):
        QuantizedHead.from_float(kernel, bias, BFV, -12)


def test_explicit_floats_are_refused():
    with pytest.raises(InputError, match="hold integers"):
        QuantizedHead(np.ones((1, 1)), np.zeros(1, dtype=int), 1.0, 0, BFV)


def test_integer_oracle_agrees_with_python_integers_and_the_bound():
    rng = np.random.default_rng(1)
    kernel, bias, features = rng.normal(size=(9, 4)), rng.normal(size=4), rng.uniform(-1, 1, size=(6, 9))
    integers, exponent = quantize_features(features, BFV, 1.0)
    head = QuantizedHead.from_float(kernel, bias, BFV, exponent)
    logits = integer_logits(head, integers)
    for sample in range(6):
        for column in range(4):
            terms = (int(integers[sample, i]) * int(head.kernel[i, column]) for i in range(9))
            assert int(logits[sample, column]) == sum(terms) + int(head.bias[column])
    error = np.abs(dequantize_logits(logits, exponent, head.weight_scale) - (features @ kernel + bias))
    assert (error <= head.error_bound(features)).all()
    assert (head.error_bound(features) <= head.error_bound()).all()


def test_zero_head_is_quantised():
    head = QuantizedHead.from_float(np.zeros((5, 2)), np.zeros(2), BFV, -12)
    assert not head.kernel.any()
    assert not head.bias.any()
    head = QuantizedHead.from_float(np.zeros((5, 2)), [1.0, -3.0], BFV, -12)
    np.testing.assert_allclose(dequantize_logits(head.bias, -12, head.weight_scale), [1.0, -3.0], rtol=1e-7)
