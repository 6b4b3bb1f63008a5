"""Parameters: the security table, the primes, and the noise that is really met."""

import math

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.packing.batched import block_samples
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS, PARAMETERS, Parameters


def _prime_of_bits(bits, degree):
    candidate = (2**bits - 1) // (2 * degree) * 2 * degree + 1
    while not all(pow(base, candidate - 1, candidate) == 1 for base in (2, 3, 5, 7)):
        candidate -= 2 * degree
    return candidate


def test_table_is_that_of_the_2024_guidelines():
    assert MAX_COEFF_MODULUS_BITS == {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430}


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_pinned_sets_are_within_the_table(scheme):
    pinned = PARAMETERS[scheme]
    assert pinned.coeff_modulus_bits <= 53
    assert pinned.modulus % (2 * pinned.poly_modulus_degree) == 1


def test_modulus_that_the_2018_table_would_allow_is_refused():
    with pytest.raises(InputError, match="at most 53 bits at poly_modulus_degree=2048"):
        Parameters("bfv", 2048, (_prime_of_bits(54, 2048),), PARAMETERS["bfv"].plaintext_modulus, 12)


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "bgv"},
        {"poly_modulus_degree": 2000},
        {"coeff_modulus": (2**52 + 1,)},
        {"coeff_modulus": (_prime_of_bits(25, 2048), _prime_of_bits(24, 2048))},
        {"plaintext_modulus": 2**29},
        {"scheme": "ckks"},
    ],
)
def test_parameters_that_do_not_fit_are_refused(change):
    pinned = PARAMETERS["bfv"]
    fields = {
        "scheme": "bfv",
        "poly_modulus_degree": 2048,
        "coeff_modulus": pinned.coeff_modulus,
        "plaintext_modulus": pinned.plaintext_modulus,
        "feature_bits": 12,
    }
    with pytest.raises(InputError):
        Parameters(**{**fields, **change})


def test_imaginary_unit_squares_to_minus_one():
    pinned = PARAMETERS["ckks"]
    assert pow(pinned.imaginary_unit, 2, pinned.modulus) == pinned.modulus - 1


def _noise(client, ciphertext):
    """Largest noise coefficient of a BFV ciphertext, up to a factor of two, from SEAL's noise budget."""
    budget = client._library.noise_level(client._ciphertext(ciphertext))
    pinned = client._parameters
    # SEAL: budget = bits(q) - bits(|t (c0 + c1 s) mod q|) - 1, floored at zero.
    return 2.0 ** (pinned.coeff_modulus_bits - 1 - budget) / pinned.plaintext_modulus, budget


def test_fresh_noise_is_below_the_bound_and_not_far_below(bfv_client):
    query = bfv_client.encrypt(np.ones((1, 8)), packing="batched")
    header, body = wire.parse(query, wire.QUERY, "query")
    bound = header.parameters.coefficient_noise_bound()
    for ciphertext in wire.residues(header, body, "query")[0][0]:
        largest, _ = _noise(bfv_client, ciphertext)
        # 2,048 Gaussian coefficients of deviation 170 reach 3 to 5 deviations; the bound stands at 11.
        assert bound / 16 < largest <= bound


def test_noise_at_the_limit_of_the_head_leaves_budget(bfv_client):
    rng = np.random.default_rng(5)
    kernel, features = rng.choice([-1.0, 1.0], size=(128, 10)), np.ones((1, 128))
    server = he.Server(kernel)
    reply = server.evaluate(bfv_client.encrypt(features, feature_range=1.0, packing="batched"))
    pinned = bfv_client._parameters
    head = server.quantized_head("bfv", -pinned.feature_bits)
    load = limits.load(pinned, head.kernel, head.bias)
    assert max(part.max() for part in load.values()) > 0.99
    header, body = wire.parse(reply, wire.REPLY, "reply")
    bound = pinned.coefficient_noise_bound(head.l2_norms.max()) + head.l1_norms.max() / 2 + 1
    assert bound < pinned.modulus / (2 * pinned.plaintext_modulus)
    for ciphertext in wire.residues(header, body, "reply")[0][0]:
        largest, budget = _noise(bfv_client, ciphertext)
        assert budget > 0
        assert largest <= 2 * bound


def test_ckks_slot_noise_is_below_the_bound_and_not_absurdly(ckks_client):
    query = ckks_client.encrypt(np.zeros((2048, 4)), feature_range=1.0)
    header, body = wire.parse(query, wire.QUERY, "query")
    pinned = header.parameters
    for ciphertext in wire.residues(header, body, "query")[0][0]:
        samples = block_samples(ckks_client._decrypt_slots(ciphertext), pinned)
        noise = np.abs(samples).max() * 2**pinned.feature_bits
        assert pinned.slot_noise_bound() / 200 < noise <= pinned.slot_noise_bound() + pinned.poly_modulus_degree / 2


def test_noise_bounds_scale_with_the_norm():
    pinned = PARAMETERS["bfv"]
    assert pinned.coefficient_noise_bound(3.0) == pytest.approx(3 * pinned.coefficient_noise_bound())
    # sqrt(2 ln 2^92) deviations of sqrt(10.5 (2/3 * 2741 + 2049)), each computed by hand.
    expected = math.sqrt(2 * 92 * math.log(2)) * math.sqrt(10.5 * (2 / 3 * 2745.6 + 2049))
    assert pinned.coefficient_noise_bound() == pytest.approx(expected, rel=1e-3)
