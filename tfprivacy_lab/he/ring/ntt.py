r"""The negacyclic number-theoretic transform in NumPy, in the order in which SEAL keeps it, and BFV's slots.

For a prime p that is 1 modulo 2N and its smallest primitive 2N-th root :math:`\psi`, position k of a transform
is the polynomial's value at :math:`\psi^{2 rev(k) + 1}`, with rev the reversal of :math:`\log_2 N` bits. In this
form polynomials multiply modulo :math:`X^N + 1` position by position (Longa and Naehrig 2016, Algs. 1 and 2).

BFV's batch encoder puts the value at :math:`\psi^{3^j}` in slot j < N/2 and the one at :math:`\psi^{-3^j}` in
slot N/2 + j, with p = t.
"""

from __future__ import annotations

import functools

import numpy as np

MAX_PRIME_BITS = 53
"""Residues are exact as float64, in which quotients are estimated."""


class Transform:
    """Transforms and products modulo one prime.

    Args:
        prime: p, at most 53 bits, 1 modulo 2N.
        degree: N, a power of two.
    """

    def __init__(self, prime: int, degree: int):
        assert prime.bit_length() <= MAX_PRIME_BITS, prime
        assert prime % (2 * degree) == 1, (prime, degree)
        self.prime, self.degree = prime, degree
        # Every stage adds at most 3p: where all of them stay below 2**53, one reduction at the end will do.
        self._lazy = 3 * degree.bit_length() * prime < 2**53
        self._wide_stages = (degree.bit_length() - 1) // 2
        root = smallest_root(prime, 2 * degree)
        order = bit_reversal(degree)
        self._stages = [self.factor(roots) for roots in self._laid_out(_powers(root, degree, prime)[order])]
        self._inverse_roots = self.factor(_powers(pow(root, -1, prime), degree, prime)[order])
        self._inverse_degree = self.factor(np.array([pow(degree, -1, prime)], np.uint64))

    def factor(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residues to multiply with, and their share of p, which saves a division in every product."""
        values = np.ascontiguousarray(values, np.uint64).view(np.int64)
        return values, values / np.float64(self.prime)

    def multiply(self, values: np.ndarray, factor: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """``values * factor`` modulo p, position by position.

        Args:
            values: uint64 below p.
            factor: What :meth:`factor` gave, broadcastable.

        Returns:
            uint64 below p.
        """
        rest = self._product(values.view(np.int64), factor)
        for _ in range(2):
            rest += self.prime & (rest >> 63)
        for _ in range(2):
            rest -= self.prime
            rest += self.prime & (rest >> 63)
        return rest.view(np.uint64)

    def _product(self, values: np.ndarray, factor: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """``values * factor`` modulo p, somewhere within (-2p, 3p), int64; values are signed and below 2**53.

        The quotient is at most 2 off (two roundings of 2**-53 of less than 2**53, and the cut), so the difference is
        right although both products overflow.
        """
        rest = values * factor[0]
        rest -= (values * factor[1]).astype(np.int64) * self.prime
        return rest

    def sum(self, values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """``values + others`` modulo p, uint64 below p like both."""
        return _reduced(values + others, np.uint64(self.prime))

    def add(self, target: np.ndarray, others: np.ndarray) -> None:
        """``target = target + others`` modulo p, in place."""
        target[...] = self.sum(target, others)

    def forward(self, coefficients: np.ndarray) -> np.ndarray:
        """The transform of polynomials.

        Args:
            coefficients: uint64 below p, shape (..., N).

        Returns:
            uint64 below p, of the same shape.
        """
        values, prime = np.array(coefficients, np.uint64).view(np.int64), self.prime
        for number, roots in enumerate(self._stages):
            if number == self._wide_stages:
                values = self._turned(values, 2**number)
            upper, lower = self._pairs(values, number)
            product = self._product(lower, roots)
            if not self._lazy:
                product %= prime
            np.subtract(upper, product, out=lower)
            upper += product
            if not self._lazy:
                values %= prime
        values %= prime
        return self._turned(values, self.degree >> self._wide_stages).view(np.uint64)

    @staticmethod
    def _turned(values: np.ndarray, rows: int) -> np.ndarray:
        """Polynomials seen as matrices of so many rows, transposed: rows of NumPy's loops stay long."""
        matrices = values.reshape(*values.shape[:-1], rows, -1)
        return np.ascontiguousarray(np.swapaxes(matrices, -1, -2)).reshape(values.shape)

    def _laid_out(self, roots: np.ndarray):
        """The roots of every stage as it wants them; blocks of a later stage lie side by side."""
        rows = 2**self._wide_stages
        for number in range(self.degree.bit_length() - 1):
            mine = roots[2**number : 2 ** (number + 1)]
            if number < self._wide_stages:
                yield mine[:, np.newaxis]
            else:
                yield mine.reshape(rows, -1).T[:, np.newaxis]

    def _pairs(self, values: np.ndarray, number: int):
        """Upper and lower half of every block of a stage, views with long rows."""
        outer = values.shape[:-1]
        if number < self._wide_stages:
            pairs = values.reshape(*outer, 2**number, 2, -1)
            return pairs[..., 0, :], pairs[..., 1, :]
        rows = 2**self._wide_stages
        pairs = values.reshape(*outer, 2 ** (number - self._wide_stages), 2, -1, rows)
        return pairs[..., 0, :, :], pairs[..., 1, :, :]

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """The polynomials of transforms; :meth:`forward` undone.

        Args:
            values: uint64 below p, shape (..., N).

        Returns:
            uint64 below p, of the same shape.
        """
        values, prime = np.array(values, np.uint64), np.uint64(self.prime)
        blocks, half = self.degree // 2, 1
        while blocks:
            pairs = values.reshape(*values.shape[:-1], blocks, 2, half)
            roots = tuple(part[blocks : 2 * blocks, np.newaxis] for part in self._inverse_roots)
            upper, lower = pairs[..., 0, :], pairs[..., 1, :]
            difference = _reduced(upper + (prime - lower), prime)
            self.add(upper, lower)
            lower[...] = self.multiply(difference, roots)
            blocks, half = blocks // 2, half * 2
        return self.multiply(values, self._inverse_degree)

    def residues(self, integers) -> np.ndarray:
        """Signed integers of any size as residues, uint64 below p."""
        array = np.asarray(integers)
        if array.dtype == object:
            return np.array([int(value) % self.prime for value in array.ravel()], np.uint64).reshape(array.shape)
        return np.mod(array.astype(np.int64), self.prime).view(np.uint64)

    def centred(self, residues: np.ndarray) -> np.ndarray:
        """Residues as the signed integers of least magnitude, int64."""
        values = residues.astype(np.int64)
        return np.where(values > self.prime // 2, values - self.prime, values)


@functools.lru_cache(maxsize=16)
def transform(prime: int, degree: int) -> Transform:
    """The :class:`Transform` of a prime and degree, made once."""
    return Transform(prime, degree)


def _reduced(values, prime):
    """Values below 2p, below p: in unsigned arithmetic ``values - p`` wraps where it would be negative."""
    return np.minimum(values, values - prime)


@functools.lru_cache(maxsize=64)
def smallest_root(prime: int, order: int) -> int:
    """The smallest primitive root of unity of an order that is a power of two, as SEAL picks it."""
    base = next(
        r for g in range(2, prime) if pow(r := pow(g, (prime - 1) // order, prime), order // 2, prime) == prime - 1
    )
    square, smallest, power = base * base % prime, base, base
    for _ in range(order // 2 - 1):
        power = power * square % prime
        smallest = min(smallest, power)
    return smallest


def bit_reversal(degree: int) -> np.ndarray:
    """rev(k) for k < degree, a power of two."""
    order = np.zeros(1, np.int64)
    while len(order) < degree:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _powers(root: int, count: int, prime: int) -> np.ndarray:
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * root % prime)
    return np.array(powers, np.uint64)


@functools.lru_cache(maxsize=8)
def slot_positions(degree: int) -> np.ndarray:
    """Where in a transform modulo t each slot of BFV's batch encoder lies, int64 (N,)."""
    where = np.empty(2 * degree, np.int64)
    where[2 * bit_reversal(degree) + 1] = np.arange(degree)
    exponents = [1]
    for _ in range(degree // 2 - 1):
        exponents.append(exponents[-1] * 3 % (2 * degree))
    rows = np.array(exponents)
    return where[np.concatenate([rows, 2 * degree - rows])]
