"""The toy of RLWE: exact within its noise bound, and residue by residue what the lab's own packing computes."""

import doctest

import numpy as np
import pytest

from tfprivacy_lab.he import plain
from tfprivacy_lab.he.packing import coefficient
from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.ring.ntt import transform
from tfprivacy_lab.he.ring.parameters import PARAMETERS

RINGS = [plain.Ring(8, 2**30, 16), plain.Ring(64, 1_000_003**2, 4099), plain.Ring(128, 2**70, 2**20)]
RINGS_AND_NAMES = pytest.mark.parametrize("ring", RINGS, ids=lambda ring: f"N={ring.poly_modulus_degree}")


def messages(ring, rng, count=1):
    """Random integers from -t/2 on, which are decrypted as they are."""
    t = ring.plaintext_modulus
    return rng.integers(-(t // 2), (t + 1) // 2, (count, ring.poly_modulus_degree))


@RINGS_AND_NAMES
def test_what_is_encrypted_is_decrypted_within_the_noise_bound(ring):
    secret, public = plain.keys(ring)
    bound = plain.noise_bound(ring)
    assert bound + 1 < ring.coeff_modulus // (2 * ring.plaintext_modulus)
    for message in messages(ring, np.random.default_rng(0), 5):
        ciphertext = plain.encrypt(ring, public, message)
        assert np.array_equal(plain.decrypt(ring, secret, ciphertext), message)
        assert 0 < plain.noise(ring, secret, ciphertext, message) <= bound


def test_multiplication_wraps_with_its_sign_changed():
    """Term by term: X^i X^j is X^(i + j), or -X^(i + j - N)."""
    ring, rng = RINGS[0], np.random.default_rng(1)
    x, y = rng.integers(0, ring.coeff_modulus, (2, 8))
    expected = [0] * 8
    for i in range(8):
        for j in range(8):
            expected[(i + j) % 8] += (1 if i + j < 8 else -1) * int(x[i]) * int(y[j])
    assert plain.multiply(ring, x, y).tolist() == [value % ring.coeff_modulus for value in expected]


@RINGS_AND_NAMES
def test_a_product_with_a_polynomial_is_right_within_the_bound_and_wrong_beyond(ring):
    rng = np.random.default_rng(2)
    secret, public = plain.keys(ring)
    room, t = ring.coeff_modulus // (2 * ring.plaintext_modulus), ring.plaintext_modulus
    weights = rng.choice([-2, -1, 1, 2], 8)
    assert plain.noise_bound(ring, weights) < room
    (message,) = messages(ring, rng)
    product = plain.times_plaintext(ring, plain.encrypt(ring, public, message), weights)
    # The message's own product, modulo t: of integers below q/2, so that it is exact modulo q.
    expected = plain.centered(plain.centered(plain.multiply(ring, message, weights), ring.coeff_modulus), t)
    assert np.array_equal(plain.decrypt(ring, secret, product), expected)
    assert plain.noise(ring, secret, product, expected) <= plain.noise_bound(ring, weights)
    # Of a message of zeros nothing is left but noise, and a factor as large as the room makes it wrong.
    spoilt = plain.times_plaintext(ring, plain.encrypt(ring, public, [0]), [2 * room])
    assert plain.noise(ring, secret, spoilt, [0]) > room
    assert plain.decrypt(ring, secret, spoilt).any()


@pytest.mark.parametrize(("features", "classes"), [(1, 1), (5, 3), (16, 4), (9, 7)])
def test_all_logits_are_in_one_product(features, classes):
    ring, rng = RINGS[1], np.random.default_rng(features)
    secret, public = plain.keys(ring)
    x, kernel = rng.integers(-10, 11, features), rng.integers(-9, 10, (features, classes))
    bias = rng.integers(-200, 201, classes)
    assert np.abs(x @ kernel + bias).max() < ring.plaintext_modulus // 2
    reply = plain.dense_head(ring, plain.encrypt(ring, public, x), kernel, bias)
    found = plain.decrypt(ring, secret, reply)
    assert np.array_equal(found[plain.logit_positions(kernel)], x @ kernel + bias)
    assert plain.noise(ring, secret, reply, found) <= plain.noise_bound(ring, kernel)


def test_the_labs_own_packing_computes_the_same_ciphertext():
    """A ciphertext of the toy, in the ring of the set "bfv", through the code that serves: the same residues."""
    parameters, rng = PARAMETERS["bfv"], np.random.default_rng(3)
    (prime,) = parameters.coeff_modulus
    ring = plain.Ring(parameters.poly_modulus_degree, prime, parameters.plaintext_modulus)
    features, classes = 37, 7
    head = QuantizedHead.from_float(
        rng.normal(size=(features, classes)), rng.normal(size=classes), parameters, -parameters.feature_bits,
        "coefficient",
    )  # fmt: skip
    x, (ends,) = rng.integers(-4096, 4097, features), coefficient.logit_positions(features, classes, parameters)
    (polynomial,) = coefficient.weight_polynomials(head.kernel, parameters)
    assert np.array_equal(plain.logit_positions(head.kernel), ends)
    assert np.array_equal(polynomial[: head.kernel.size], head.kernel[::-1].T.ravel())
    assert not polynomial[head.kernel.size :].any()

    secret, public = plain.keys(ring)
    ciphertext = plain.encrypt(ring, public, x)
    reply = plain.dense_head(ring, ciphertext, head.kernel, head.bias)

    way, prepared = transform(prime, ring.poly_modulus_degree), coefficient.PreparedHead(head)
    sent = np.stack([way.forward(way.residues(part)) for part in ciphertext])
    products = prepared.products_of(sent[:, np.newaxis])
    prepared.add_bias(products)
    for part, expected in zip(products[0, :, 0], reply, strict=True):
        assert way.inverse(part).tolist() == expected.tolist()
    assert np.array_equal(plain.decrypt(ring, secret, reply)[ends], x @ head.kernel + head.bias)


def test_two_encryptions_and_two_keys_have_nothing_in_common():
    ring = RINGS[1]
    (secret, public), (other, _) = plain.keys(ring), plain.keys(ring)
    first, second = plain.encrypt(ring, public, [1, 2]), plain.encrypt(ring, public, [1, 2])
    for one, another in zip(first, second, strict=True):
        assert np.mean(one == another) < 0.1
    assert np.any(secret != other)
    assert plain.decrypt(ring, secret, second)[:2].tolist() == [1, 2]
    assert not np.array_equal(plain.decrypt(ring, other, second)[:2], [1, 2])


def test_keys_and_errors_have_their_stated_laws():
    ring = plain.Ring(20_000, 2**30, 16)
    counts = np.bincount(np.array(plain.small(ring) + 1, int), minlength=3)
    assert len(counts) == 3
    assert np.abs(counts - 20_000 / 3).max() < 6 * np.sqrt(20_000 * 2 / 9)
    errors = np.array(plain.error(ring), float)
    assert np.abs(errors).max() <= plain.ERROR_BITS
    # Variance 10.5, estimated to one in a hundred; that of another number of bits is 5 in a hundred off.
    assert abs(errors.mean()) < 6 * np.sqrt(10.5 / 20_000)
    assert errors.var() == pytest.approx(10.5, rel=0.06)


def test_the_example_of_the_docstring():
    found = doctest.testmod(plain)
    assert (found.failed, found.attempted > 0) == (0, True)
