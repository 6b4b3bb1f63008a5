r"""Replies that tell the holder of the key the logits, and nothing else of the head.

A product of the query with the weights would: its c1 divided by the query's c1 *is* the weights; its unused
coefficients are partial sums of them; and the noise of its logits grows with them. So to every product are added,
under the client's public key (b, a),

.. math:: (b u + e_1 + m,\; a u + e_2)

an encryption of zero with u uniform on {-1, 0, 1} and centred binomial errors as SEAL's, and in m a uniform residue of
q at every coefficient that carries no logit, and a uniform integer of magnitude up to F at those that do ("noise
flooding"; F from :func:`~tfprivacy_lab.he.quantization.limits.flooding`, the same for all heads of a shape).

Guarantee: for a client that made its keys and query as stated, c1 of the reply is indistinguishable from uniform
(RLWE), the coefficients without a logit are uniform, and the others are the same for all heads of one shape, weight
scale and integer logits, within statistical distance :math:`2^{-40}` a sample. All randomness is the operating
system's.

What remains: the shape and the weight scale, a power of two, in the reply's header: the size of the head's largest
column, to a factor of two.

Not covered: a client that makes its public key otherwise: under a = 0 nothing is hidden; a query that holds more than
features: its "logits" are other sums of the weights, as many a sample; and what the logits themselves tell: d + 1
chosen samples give a linear head away, and half as many where two weights fit one logit.
"""

from __future__ import annotations

import os
import secrets

import numpy as np

from tfprivacy_lab.he.packing.coefficient import PreparedHead, logit_positions
from tfprivacy_lab.he.quantization.limits import flooding

_BINOMIAL_BITS = 21


class Sanitizer:
    """Sanitises the products of one prepared head.

    Args:
        prepared: The head, under a set that has room for flooding.
    """

    def __init__(self, prepared: PreparedHead):
        head = prepared.head
        self._prepared = prepared
        self._positions = logit_positions(*head.kernel.shape, head.parameters)
        self.flooding = flooding(head.parameters, *head.kernel.shape)

    def add_to(self, products: np.ndarray, public_key: list) -> None:
        """Add bias, masks, flooding and an encryption of zero to products, in place.

        Args:
            products: uint64, transformed, shape (products, 2, primes, N).
            public_key: For every prime, (b, a) as factors of its transform, each (2, N).
        """
        degree = products.shape[-1]
        for number, ends in enumerate(self._positions):
            chosen = ternary(degree)
            errors = centred_binomial(2 * degree).reshape(2, degree)
            floods = [secrets.randbelow(2 * self.flooding + 1) - self.flooding for _ in ends]
            for k, way in enumerate(self._prepared.transforms):
                added = np.empty((3, degree), np.uint64)
                added[0], added[1:] = way.residues(chosen), way.residues(errors)
                masked = uniform(way.prime, degree)
                masked[ends] = self._prepared.bias[k][number, ends]
                masked[ends] = way.sum(masked[ends], np.array([flood % way.prime for flood in floods], np.uint64))
                way.add(added[1], masked)
                added = way.forward(added)
                for part in (0, 1):
                    factor = tuple(array[part] for array in public_key[k])
                    total = products[number, part, k]
                    way.add(total, way.multiply(added[0], factor))
                    way.add(total, added[1 + part])


def uniform(prime: int, count: int) -> np.ndarray:
    """Uniform residues below a prime, uint64 (count,): by rejection, so that none is likelier."""
    bits, found = prime.bit_length(), np.empty(0, np.uint64)
    while len(found) < count:
        more = (count - len(found)) * 2**bits // prime + 64
        drawn = np.frombuffer(os.urandom(8 * more), np.uint64) & np.uint64(2**bits - 1)
        found = np.concatenate([found, drawn[drawn < prime]])[:count]
    return found


def ternary(count: int) -> np.ndarray:
    """Uniform on {-1, 0, 1}, int64 (count,)."""
    found = np.empty(0, np.int64)
    while len(found) < count:
        drawn = np.frombuffer(os.urandom(2 * (count - len(found)) + 16), np.uint8)
        found = np.concatenate([found, drawn[drawn < 255].astype(np.int64) % 3 - 1])[:count]
    return found


def centred_binomial(count: int) -> np.ndarray:
    """Differences of two 21-bit Hamming weights, variance 10.5, as SEAL's errors; int64 (count,)."""
    drawn = np.frombuffer(os.urandom(8 * count), np.uint64)
    mask = np.uint64(2**_BINOMIAL_BITS - 1)
    return _hamming_weight(drawn & mask) - _hamming_weight((drawn >> np.uint64(32)) & mask)


def _hamming_weight(values: np.ndarray) -> np.ndarray:
    """Bits set in values below 2**32, int64 (Warren 2013, "Hacker's Delight", figure 5-2)."""
    values = values.astype(np.int64)
    values = values - ((values >> 1) & 0x55555555)
    values = (values & 0x33333333) + ((values >> 2) & 0x33333333)
    values = (values + (values >> 4)) & 0x0F0F0F0F
    return ((values * 0x01010101) >> 24) & 0xFF
