"""From features to logits: BFV exact against the integer oracle, CKKS within its stated bound."""

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.quantization.heads import dequantize_logits

SHAPES = [(37, 7), (128, 10), (784, 10)]


def _features(rng, samples, width):
    features = np.maximum(rng.normal(size=(samples, width)), 0)
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-9)


def _check(client, kernel, bias, features, feature_range=1.0):
    """Evaluate encrypted in every packing that is not absurd; the logits of the last, which is batched."""
    packings = ["coefficient"] * (len(features) <= 50 and np.size(kernel) < 20_000) + ["batched"] * (
        "batched" in client.parameters.packings
    )
    return [_check_packing(packing, client, kernel, bias, features, feature_range) for packing in packings][-1]


def _check_packing(packing, client, kernel, bias, features, feature_range):
    """Evaluate encrypted; compare with the oracle (BFV) and with the float head (both)."""
    server = he.Server(kernel, bias)
    query = client.encrypt(features, feature_range, packing)
    step_exponent = wire.parse(query, wire.QUERY, "query")[0].step_exponent
    reply = server.evaluate(query)
    logits = client.decrypt(reply, query)
    head = server.quantized_head(client.parameters.name, step_exponent, packing)
    assert logits.shape == (len(features), np.shape(kernel)[1])
    assert logits.dtype == np.float64
    if client.scheme == "bfv":
        integers, exponent = he.quantize_features(features, client.parameters, feature_range)
        got, got_exponent, scale = client.decrypt_integers(reply)
        np.testing.assert_array_equal(got, he.integer_logits(head, integers))
        assert (got_exponent, scale) == (exponent, head.weight_scale)
        np.testing.assert_array_equal(logits, dequantize_logits(got, exponent, scale))
    expected = np.asarray(features, np.float64) @ np.asarray(kernel, np.float64)
    expected += 0 if bias is None else bias
    # The float head rounds too: at most d + 1 operations of relative error 2**-53.
    slack = len(kernel) * 2.0**-50 * (np.abs(features).astype(float) @ np.abs(kernel) + np.abs(expected))
    assert (np.abs(logits - expected) <= head.error_bound(features) + slack).all()
    return logits, expected


@pytest.mark.parametrize("samples", [1, 5, 4097])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_heads(client, shape, samples):
    if shape == (784, 10) and samples == 4097 and client.scheme == "ckks":
        samples = 2049
    rng = np.random.default_rng(shape[0] + samples)
    features = _features(rng, samples, shape[0])
    _check(client, rng.normal(size=shape) * 0.2, rng.normal(size=shape[1]) * 0.1, features)


@pytest.mark.slow_but("bfv")
def test_largest_head(client):
    rng = np.random.default_rng(2)
    _check(client, rng.normal(size=(2048, 1000)) * 0.1, rng.normal(size=1000), _features(rng, 5, 2048))


@pytest.mark.long
def test_largest_head_many_samples(client):
    rng = np.random.default_rng(3)
    _check(client, rng.normal(size=(2048, 1000)) * 0.1, rng.normal(size=1000), _features(rng, 4097, 2048))


@pytest.mark.slow_but("*-shape0", "*-shape1", "*-shape2")
@pytest.mark.parametrize("shape", [(1, 1), (37, 7), (128, 10), (2048, 2)])
def test_features_at_the_end_of_their_range_aligned_with_the_weights(client, shape):
    rng = np.random.default_rng(4)
    kernel, bias = rng.normal(size=shape), rng.normal(size=shape[1])
    signs = np.where(kernel.T >= 0, 1.0, -1.0)
    features = np.concatenate([signs, -signs, signs * rng.choice([-1, 1], size=signs.shape)])
    _check(client, kernel, np.abs(bias), features)
    _check(client, np.ones(shape), -np.abs(bias), features)


def test_all_slots_of_a_block_at_the_end_of_their_range(client):
    kernel = np.ones((16, 2)) * [1.0, -1.0]
    _check(client, kernel, [5.0, -5.0], np.ones((2048, 16)))
    _check(client, kernel, [5.0, -5.0], np.tile(np.where(np.arange(2048) % 2, 1.0, -1.0)[:, None], 16))


def test_zero_columns_and_an_all_zero_head(client):
    rng = np.random.default_rng(6)
    features = _features(rng, 2050, 12)
    kernel, bias = rng.normal(size=(12, 4)), rng.normal(size=4)
    kernel[:, [0, 2]] = 0
    bias[0] = 0
    logits, _ = _check(client, kernel, bias, features)
    assert np.abs(logits[:, 2] - bias[2]).max() < 1e-3
    if client.scheme == "bfv":
        assert not logits[:, 0].any()
    logits, _ = _check(client, np.zeros((12, 4)), np.zeros(4), features)
    assert np.abs(logits).max() == 0
    _check(client, np.zeros((12, 4)), bias, features)
    _check(client, kernel, None, features)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-3, 1e6, 1e30])
def test_magnitudes_without_a_stated_range(client, magnitude):
    rng = np.random.default_rng(7)
    features = rng.uniform(-magnitude, magnitude, size=(9, 11))
    kernel = rng.normal(size=(11, 3))
    _check(client, kernel, rng.normal(size=3) * magnitude, features, feature_range=None)


def test_features_far_below_the_bias_ask_for_a_range(client):
    with pytest.raises(InputError, match="encrypt with a larger feature_range"):
        he.Server(np.ones((3, 2)), [1.0, 0.0]).evaluate(client.encrypt(np.full((2, 3), 1e-30)))
    _check(client, np.ones((3, 2)), [1.0, 0.0], np.full((2, 3), 1e-30), feature_range=1.0)


def test_a_refusal_tells_the_client_nothing_of_the_weights(client, sanitized_client):
    """A step that the head has no room at: the client chooses it, and gets the message."""
    for one in (client, sanitized_client):
        query = one.encrypt(np.full((2, 3), 1e-30))
        told = set()
        for size in (1.25, 137.5):
            with pytest.raises(InputError, match="larger feature_range") as error:
                he.Server(np.full((3, 2), 0.1875 * size), [size, 0.0]).evaluate(query)
            assert error.value.__suppress_context__
            told.add(str(error.value))
        assert len(told) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int16])
def test_number_types_and_strided_features(client, dtype):
    rng = np.random.default_rng(8)
    features = rng.integers(-9, 9, size=(20, 14)).astype(dtype)[::2, ::-2].T[:5].T
    assert not features.flags.c_contiguous
    kernel = rng.normal(size=(5, 3)).astype(np.float32)
    _check(client, np.asfortranarray(kernel), np.ones(3, np.float32), features, feature_range=None)


def _trained_head(rng):
    """10,000 unit-normalised ReLU features of ten overlapping classes, and a least-squares head."""
    centres = rng.normal(size=(10, 128))
    labels = rng.integers(0, 10, size=14_000)
    features = np.maximum(centres[labels] + rng.normal(size=(14_000, 128)) * 2.5, 0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    design = np.concatenate([features[:4000], np.ones((4000, 1))], axis=1)
    solution = np.linalg.lstsq(design, np.eye(10)[labels[:4000]], rcond=None)[0]
    return solution[:-1], solution[-1], features[4000:], labels[4000:]


def test_predictions_agree_with_the_float_head(client):
    kernel, bias, features, labels = _trained_head(np.random.default_rng(9))
    logits, expected = _check(client, kernel, bias, features)
    accuracy = (expected.argmax(1) == labels).mean()
    assert 0.9 < accuracy < 0.98  # overlapping classes: some predictions are close calls
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.999
    if client.scheme == "ckks":
        assert np.abs(logits - expected).max() < 1e-3
