r"""Samples in slots, residues in limbs: how a dense layer becomes one matrix product.

One ciphertext holds one feature of a block of 2,048 samples. A dense layer is then, for every class,
a sum of ciphertexts with scalar integer weights, which acts on the residues of the ciphertexts
themselves: ``reply = weights @ query  (mod q)`` (Bae et al. 2024, CRYPTO, ciphertext-plaintext matrix
multiplication). No rotation, no key, no homomorphic library.

Slots: BFV keeps sample j of a block in slot j. CKKS keeps sample j < 1024 in the real part of complex
slot j and sample j + 1024 in its imaginary part, negated where j is odd; real weights never mix the
two. SEAL's slot j is the value at :math:`\zeta^{3^j}`, where :math:`X^{N/2}` is i for even and -i for odd j:
with this sign the polynomial :math:`b (1 + X^{N/2})` adds b to every sample, exactly.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab.he.ring.parameters import LIMB_BITS, Parameters

_CHUNK_ELEMENTS = 2**20


def block_count(samples: int, parameters: Parameters) -> int:
    """Blocks that hold this many samples, the last one padded with zeros."""
    return -(-samples // parameters.samples_per_block)


def block_slots(rows: np.ndarray, parameters: Parameters) -> np.ndarray:
    """The slots of one block, those beyond its samples zero.

    Args:
        rows: Shape (samples, columns), at most N samples.
        parameters: The scheme's set.

    Returns:
        C-contiguous: the rows' dtype (columns, N) for BFV, complex128 (columns, N/2) for CKKS.
    """
    size = parameters.samples_per_block
    slots = np.zeros((rows.shape[1], size), dtype=rows.dtype)
    slots[:, : len(rows)] = rows.T
    if parameters.scheme == "bfv":
        return slots
    return slots[:, : size // 2] + 1j * _imaginary_sign(size // 2) * slots[:, size // 2 :]


def block_samples(slots: np.ndarray, parameters: Parameters) -> np.ndarray:
    """The inverse of :func:`block_slots`: one ciphertext's slots as (N,) real samples."""
    if parameters.scheme == "bfv":
        return slots
    return np.concatenate([slots.real, slots.imag * _imaginary_sign(len(slots))])


def _imaginary_sign(slots: int) -> np.ndarray:
    """What :math:`X^{N/2}` is in each complex slot, over i: 1, -1, 1, -1 and so on."""
    return np.where(np.arange(slots) % 2, -1.0, 1.0)


def modular_matmul(weights: np.ndarray, residues: np.ndarray, modulus: int) -> np.ndarray:
    """``weights @ residues`` modulo a prime of at most 53 bits, exact, at the speed of float64 BLAS.

    Each residue is ``high * 2**27 + low``; both products are sums of integers that stay below 2**53
    whatever their order, so float64 holds them exactly.

    Args:
        weights: Signed integers, shape (c, d), any real dtype; ``sum_i |weights[j, i]| * 2**27 <= 2**53``.
        residues: uint64 in [0, modulus), shape (d, m).
        modulus: At most 53 bits.

    Returns:
        uint64 in [0, modulus), shape (c, m).

    Raises:
        AssertionError: if the weights or the modulus are beyond the bound.
    """
    weights = np.ascontiguousarray(weights, dtype=np.float64)
    assert modulus.bit_length() <= 2 * LIMB_BITS - 1, modulus
    assert np.abs(weights).sum(axis=1).max(initial=0) * 2.0**LIMB_BITS <= 2.0**53, "weights too large for float64"
    result = np.empty((weights.shape[0], residues.shape[1]), dtype=np.uint64)
    # A chunk's limbs fit the cache, and memory does not grow with the samples.
    chunk = max(1, _CHUNK_ELEMENTS // max(weights.shape))
    for start in range(0, residues.shape[1], chunk):
        part = residues[:, start : start + chunk]
        low = weights @ (part & np.uint64(2**LIMB_BITS - 1)).astype(np.float64)
        high = weights @ (part >> np.uint64(LIMB_BITS)).astype(np.float64)
        result[:, start : start + chunk] = _join_limbs(low.astype(np.int64), high.astype(np.int64), modulus)
    return result


def matmul_scratch_bytes(shape: tuple[int, int], columns: int) -> int:
    """What :func:`modular_matmul` of weights (c, d) and so many columns holds at most beside operands and result."""
    chunk = min(columns, max(1, _CHUNK_ELEMENTS // max(shape)))
    return 8 * chunk * (3 * shape[1] + 4 * shape[0])


def _join_limbs(low: np.ndarray, high: np.ndarray, modulus: int) -> np.ndarray:
    """``(high * 2**27 + low) mod modulus`` without leaving int64: three shifts by 9 bits."""
    high %= modulus
    for _ in range(3):
        high <<= LIMB_BITS // 3
        high %= modulus
    high += low
    high %= modulus
    return high.view(np.uint64)


def bias_residues(bias: np.ndarray, parameters: Parameters) -> np.ndarray:
    """What to add to a ciphertext's first polynomial so that every sample gains the integer bias.

    BFV, coefficient form: the constant polynomial, ``round(q b / t)`` in coefficient 0. CKKS, transformed
    form: :math:`b (1 + X^{N/2})` (module docstring) is :math:`b (1 \\pm I)` in its two halves.

    Args:
        bias: Integers, shape (c,).
        parameters: The scheme's set.

    Returns:
        uint64 in [0, q), shape (c, N).
    """
    q, degree = parameters.modulus, parameters.poly_modulus_degree
    result = np.zeros((len(bias), degree), dtype=np.uint64)
    for row, value in zip(result, map(int, bias), strict=True):
        if parameters.scheme == "bfv":
            t = parameters.plaintext_modulus
            row[0] = (2 * q * value + t) // (2 * t) % q
        else:
            row[: degree // 2] = value * (1 + parameters.imaginary_unit) % q
            row[degree // 2 :] = value * (1 - parameters.imaginary_unit) % q
    return result


def add_modular(target: np.ndarray, addend: np.ndarray, modulus: int) -> None:
    """``target = (target + addend) mod modulus`` in place, both uint64 below a modulus of at most 63 bits."""
    target += addend
    np.subtract(target, np.uint64(modulus), out=target, where=target >= modulus)
