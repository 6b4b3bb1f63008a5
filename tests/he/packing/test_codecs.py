"""What a codec lays out as plaintexts is what it finds in them, without a key and without encryption."""

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.packing import codecs, coefficient
from tfprivacy_lab.he.quantization.steps import Steps, feature_steps, quantize_features
from tfprivacy_lab.he.ring.ntt import transform
from tfprivacy_lab.he.ring.parameters import PARAMETERS

EVERY = [(packing, name) for name, parameters in PARAMETERS.items() for packing in parameters.packings]
RANGE = [1.0, 8.0, 0.5]


def _residues(rng, parameters):
    """The residues of a ciphertext, each below its prime."""
    shape = (2, parameters.poly_modulus_degree)
    return np.stack([rng.integers(0, q, shape, np.uint64) for q in parameters.coeff_modulus], axis=1)


def _slots(plaintext, parameters):
    """What the decoder would show, also of integers that pass by the encoder."""
    if not len(plaintext.residues):
        return plaintext.slots
    assert not plaintext.slots.any()
    ways = [transform(prime, parameters.poly_modulus_degree) for prime in parameters.coeff_modulus]
    first, second = (way.inverse(part) for way, part in zip(ways, plaintext.residues, strict=True))
    p, q = parameters.coeff_modulus
    parts = zip(first.tolist(), second.tolist(), strict=True)
    whole = [(a + p * ((b - a) * pow(p, -1, q) % q) + p * q // 2) % (p * q) - p * q // 2 for a, b in parts]
    return coefficient.ckks_slots(np.array(whole, float) / parameters.max_feature, parameters)


@pytest.mark.parametrize(("packing", "name"), EVERY)
def test_decode_finds_the_integers_that_encode_laid_out(packing, name):
    """A head of one feature shows what stands in its place; a batch of columns as well."""
    parameters, codec = PARAMETERS[name], codecs.codec_of(packing, PARAMETERS[name])
    samples = parameters.samples_per_block + 5 if packing == "batched" else 3
    features = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 3)) * RANGE
    steps = feature_steps(features, parameters, RANGE, packing)
    slots = [_slots(plaintext, parameters) for plaintext in codec.encode(features, steps)]
    columns = 3 if packing == "batched" else 1
    rows = [slots[first : first + columns] for first in range(0, len(slots), columns)]
    found = codec.decode(rows, samples, 1, 3)
    expected = np.rint(np.ldexp(features, -steps.exponents(3)))
    if parameters.scheme == "bfv":
        assert found.dtype == np.int64
        assert np.array_equal(found, expected)
        assert np.array_equal(found, quantize_features(features, parameters, RANGE)[0])
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=max(1.0, 1e-12 * parameters.max_feature))


@pytest.mark.parametrize(("packing", "name"), EVERY)
def test_what_is_received_is_what_was_sent(packing, name):
    parameters, codec = PARAMETERS[name], codecs.codec_of(packing, PARAMETERS[name])
    ciphertext, kept = (_residues(np.random.default_rng(1), parameters) for _ in range(2))
    plaintext = next(codec.encode(np.ones((1, 3)), Steps(-parameters.feature_bits)))
    sent = codec.sent(ciphertext, plaintext)
    assert np.array_equal(ciphertext, kept)
    for k, prime in enumerate(parameters.coeff_modulus):
        way = transform(prime, parameters.poly_modulus_degree)
        expected = way.forward(kept[:, k]) if (packing, parameters.scheme) == ("coefficient", "bfv") else kept[:, k]
        if len(plaintext.residues):
            assert plaintext.residues[k].any()
            expected = np.stack([way.sum(expected[0], plaintext.residues[k]), expected[1]])
        assert np.array_equal(sent[:, k], expected)
    if not len(plaintext.residues):
        assert np.array_equal(codec.received(sent), kept)


def test_only_the_finest_set_passes_by_the_encoder():
    """At a scale of 70 bits the encoder's float64 would round sums of weights into every coefficient."""
    for packing, name in EVERY:
        plaintext = next(codecs.codec_of(packing, PARAMETERS[name]).encode(np.ones((1, 2)), Steps(0)))
        assert bool(len(plaintext.residues)) == (name == "ckks-sanitized")


@pytest.mark.parametrize(("packing", "name"), EVERY)
def test_replies_of_another_shape_are_not_decoded(packing, name):
    """No plaintext is left over, and none is missing, whatever a header says."""
    codec = codecs.codec_of(packing, PARAMETERS[name])
    slots = next(codec.encode(np.ones((1, 2)), Steps(0))).slots
    for rows in ([], [[slots]] * 2, [[]], [[slots] * 2]):
        with pytest.raises(ValueError, match="zip"):
            codec.decode(rows, 1, 2, 1)
    assert codec.decode([[slots]], 1, 2, 1).shape == (1, 1)


def test_packing_is_chosen_by_the_size_of_the_query():
    bfv, ckks = PARAMETERS["bfv"], PARAMETERS["ckks"]
    assert codecs.choose_packing("auto", 5, 10, bfv) == "coefficient"
    assert codecs.choose_packing("auto", 6, 10, bfv) == "batched"
    assert codecs.choose_packing("auto", 6, 10, ckks) == "coefficient"  # its noise is smaller there
    assert codecs.choose_packing("auto", 5000, 1, PARAMETERS["bfv-sanitized"]) == "coefficient"
    assert codecs.choose_packing("batched", 1, 2048, bfv) == "batched"
    for packing, parameters in (("diagonal", bfv), ("batched", PARAMETERS["ckks-sanitized"])):
        with pytest.raises(InputError, match="Expected packing to be one of"):
            codecs.choose_packing(packing, 1, 1, parameters)
