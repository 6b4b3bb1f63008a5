"""The transform against products of polynomials in Python's integers, and against the library's encoders."""

import numpy as np
import pytest

from tfprivacy_lab.he.ring import ntt
from tfprivacy_lab.he.ring.parameters import PARAMETERS

PRIMES = [(536813569, 2048), (9007199254614017, 2048), (97, 8), (35184371884033, 4096)]


def negacyclic(a, b, prime):
    """The schoolbook product modulo X^N + 1."""
    n, result = len(a), [0] * len(a)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            sign = 1 if i + j < n else -1
            result[(i + j) % n] += sign * x * y
    return [value % prime for value in result]


@pytest.mark.parametrize(("prime", "degree"), [(97, 8), (536813569, 64), (9007199254614017, 64)])
def test_products_are_those_of_the_ring(prime, degree):
    rng, way = np.random.default_rng(0), ntt.Transform(prime, degree)
    for case in range(4):
        a, b = (rng.integers(0, prime, degree).astype(np.uint64) for _ in range(2))
        if case == 0:
            a[:], b[:] = prime - 1, prime - 1
        product = way.inverse(way.multiply(way.forward(a), way.factor(way.forward(b))))
        assert product.tolist() == negacyclic(a.tolist(), b.tolist(), prime)


@pytest.mark.parametrize(("prime", "degree"), PRIMES)
def test_positions_are_values_at_the_stated_roots(prime, degree):
    rng, way = np.random.default_rng(1), ntt.Transform(prime, degree)
    polynomial = rng.integers(0, prime, degree).astype(np.uint64)
    values, root = way.forward(polynomial), ntt.smallest_root(prime, 2 * degree)
    assert pow(root, degree, prime) == prime - 1
    for k in (0, 1, degree // 2, degree - 1):
        reverse = int(f"{k:0{degree.bit_length() - 1}b}"[::-1], 2)
        at = pow(root, 2 * reverse + 1, prime)
        value = 0
        for coefficient in reversed(polynomial.tolist()):
            value = (value * at + coefficient) % prime
        assert values[k] == value
    assert np.array_equal(way.inverse(values), polynomial)
    ends = np.full(degree, prime - 1, np.uint64)
    assert np.array_equal(way.inverse(way.forward(ends)), ends)
    batch = np.stack([polynomial, np.zeros_like(polynomial), polynomial[::-1]])
    assert np.array_equal(way.forward(batch)[2], way.forward(polynomial[::-1]))


def test_products_are_exact_at_the_ends():
    """The estimated quotient is off where both factors are large: compared with Python's integers."""
    for prime in (9007199254614017, 35184371884033, 40961):
        way, rng = ntt.Transform(prime, 2048), np.random.default_rng(2)
        ends = np.array([0, 1, 2, prime // 2, prime - 2, prime - 1], np.uint64)
        a = np.concatenate([ends, rng.integers(0, prime, 5000).astype(np.uint64)])
        for b in (0, 1, prime // 3, prime - 2, prime - 1):
            found = way.multiply(a, way.factor(np.array([b], np.uint64)))
            assert found.tolist() == [x * b % prime for x in a.tolist()]


def test_slots_are_where_the_library_puts_them():
    from tfprivacy_lab.he.ring.seal import Pyfhel

    parameters = PARAMETERS["bfv"]
    t, degree = parameters.plaintext_modulus, parameters.poly_modulus_degree
    library = Pyfhel()
    library.contextGen(scheme="bfv", n=degree, t=t, qi=list(parameters.coeff_modulus))
    way = ntt.transform(t, degree)
    polynomial = np.random.default_rng(3).integers(-1000, 1000, degree)
    slots = way.centred(way.forward(way.residues(polynomial))[ntt.slot_positions(degree)])
    encoded = library.encodeInt(np.ascontiguousarray(slots))
    # SEAL writes a plaintext as its polynomial, highest power first, coefficients in hexadecimal.
    found = np.zeros(degree, np.uint64)
    for term in encoded.to_poly_string().split(" + "):
        coefficient, _, power = term.partition("x^")
        found[int(power or 0)] = int(coefficient, 16)
    assert np.array_equal(found, way.residues(polynomial))
    assert np.array_equal(library.decodeInt(encoded), slots)
