r"""Encryption of a dense head in sixty lines of Python, to be read first. **Not secure: a toy.**

Everything is a polynomial with coefficients modulo q, and :math:`X^N = -1`. The secret key s has coefficients in
{-1, 0, 1}; the public key is (b, a), a uniform and :math:`b = -a s + e` for small errors e. That s cannot be found
from it for large N is *learning with errors over rings* (Lyubashevsky, Peikert and Regev 2010). A message m,
coefficients modulo t, is moved to the top of q, and the errors stay at the bottom (Fan and Vercauteren 2012, "BFV"):

.. math:: (c_0, c_1) = (b u + e_1 + \lfloor q m / t \rceil,\; a u + e_2), \qquad
    c_0 + c_1 s = \lfloor q m / t \rceil + v, \quad v = e u + e_1 + e_2 s.

Rounding to multiples of q / t removes v. A polynomial w that is not encrypted multiplies both parts, hence the
message and the noise. One such product holds all logits of a head (Huang et al. 2022, "Cheetah", section 3.1):
feature i stands at :math:`X^i`, weight :math:`W_{ij}` at :math:`X^{d j + d - 1 - i}`, and the coefficient of
:math:`X^{d j + d - 1}` is logit j.

>>> ring = Ring(poly_modulus_degree=8, coeff_modulus=2**30, plaintext_modulus=64)
>>> secret, public = keys(ring)
>>> query = encrypt(ring, public, [1, 0, 2, 1])                              # the client: features
>>> kernel, bias = np.array([[1, 0], [2, -1], [0, 2], [-1, 1]]), np.array([3, -10])
>>> reply = dense_head(ring, query, kernel, bias)                            # the server: it has no key
>>> decrypt(ring, secret, reply)[logit_positions(kernel)]                    # the client: logits
array([ 3, -5])

This is the oracle of :mod:`tfprivacy_lab.he.packing.coefficient`; nothing of the package imports it. Random numbers
come from the operating system, and still: rings this small fall to whoever tries all keys, no table of safe parameters
is looked at, how long a step takes depends on the secret, and the other coefficients of a reply tell partial sums of
the weights. For data that matter use :class:`tfprivacy_lab.he.Client` and :class:`tfprivacy_lab.he.Server`.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np

ERROR_BITS = 21
"""An error is the difference of two Hamming weights of so many bits: at most 21, its standard deviation 3.2."""


class Ring(NamedTuple):
    """Polynomials modulo X^N + 1: degree N, their coefficients' modulus q, and the messages' modulus t."""

    poly_modulus_degree: int
    coeff_modulus: int
    plaintext_modulus: int


def centered(x, modulus):
    """Residues as signed numbers, from -modulus/2 on."""
    return (x + modulus // 2) % modulus - modulus // 2


def multiply(ring, x, y):
    """Product modulo X^N + 1 and q: what overflows at the top comes back at the bottom with its sign changed."""
    whole = np.zeros(2 * ring.poly_modulus_degree, object)  # Python's integers, which do not overflow
    product = np.convolve(np.asarray(x, object), np.asarray(y, object))
    whole[: len(product)] = product
    return (whole[: len(whole) // 2] - whole[len(whole) // 2 :]) % ring.coeff_modulus


def small(ring):
    """A polynomial of coefficients in {-1, 0, 1}."""
    return np.array([secrets.randbelow(3) - 1 for _ in range(ring.poly_modulus_degree)], object)


def error(ring):
    """A polynomial of small errors, nearly Gaussian."""
    weights = [secrets.randbits(ERROR_BITS).bit_count() for _ in range(2 * ring.poly_modulus_degree)]
    return np.subtract(weights[::2], weights[1::2]).astype(object)


def keys(ring):
    """The secret key s, and the public key (b, a)."""
    secret = small(ring)
    a = np.array([secrets.randbelow(ring.coeff_modulus) for _ in secret], object)
    return secret, ((error(ring) - multiply(ring, a, secret)) % ring.coeff_modulus, a)


def scaled(ring, message):
    """q m / t, rounded: a message of up to N coefficients, at the top of q."""
    whole = np.zeros(ring.poly_modulus_degree, object)
    whole[: len(message)] = [int(value) for value in message]
    return (2 * ring.coeff_modulus * whole + ring.plaintext_modulus) // (2 * ring.plaintext_modulus)


def encrypt(ring, public, message):
    """A ciphertext of a message, integers modulo t; anyone who has the public key can make one."""
    u = small(ring)
    c0 = multiply(ring, public[0], u) + error(ring) + scaled(ring, message)
    c1 = multiply(ring, public[1], u) + error(ring)
    return c0 % ring.coeff_modulus, c1 % ring.coeff_modulus


def phase(ring, secret, ciphertext):
    """c0 + c1 s: message and noise together."""
    return (ciphertext[0] + multiply(ring, ciphertext[1], secret)) % ring.coeff_modulus


def decrypt(ring, secret, ciphertext):
    """The message, int64 (N,), from -t/2 on; right while :func:`noise` and 1/2 together are below q / 2t."""
    q, t = ring.coeff_modulus, ring.plaintext_modulus
    rounded = (2 * t * phase(ring, secret, ciphertext) + q) // (2 * q)
    return centered(rounded, t).astype(np.int64)


def noise(ring, secret, ciphertext, message):
    """The largest coefficient of what a ciphertext of this message holds beside it."""
    beside = phase(ring, secret, ciphertext) - scaled(ring, message)
    return int(np.abs(centered(beside, ring.coeff_modulus)).max())


def noise_bound(ring, weights=(1,)):
    """What :func:`noise` is at most in a product of a fresh ciphertext with a polynomial of these weights.

    u and s have coefficients of at most 1 and e, e1 and e2 of at most 21, so v = e u + e1 + e2 s has of at most
    21 (2N + 1). Rounding q m / t leaves 1/2 before the product and 1/2 after it, and that of a bias 1/2 more.
    """
    fresh = ERROR_BITS * (2 * ring.poly_modulus_degree + 1)
    return int(np.abs(np.asarray(weights, object)).sum()) * (2 * fresh + 1) // 2 + 1


def times_plaintext(ring, ciphertext, polynomial):
    """A ciphertext of the message times a polynomial that is not encrypted."""
    return tuple(multiply(ring, part, polynomial) for part in ciphertext)


def logit_positions(kernel):
    """The coefficients that carry the logits: d j + d - 1 for class j."""
    features, classes = kernel.shape
    return features * np.arange(classes) + features - 1


def dense_head(ring, ciphertext, kernel, bias):
    """A ciphertext of the logits: of integers, of d features and c classes with d c <= N, by one product."""
    c0, c1 = times_plaintext(ring, ciphertext, kernel[::-1].T.ravel())
    shift = np.zeros(ring.poly_modulus_degree, object)
    shift[logit_positions(kernel)] = bias
    return (c0 + scaled(ring, shift)) % ring.coeff_modulus, c1
