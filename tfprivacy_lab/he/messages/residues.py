"""Layers and squares on the residues of ciphertexts: exact arithmetic modulo each prime, at the speed of float64.

A ciphertext of k polynomials stands for :math:`\\sum_i c_i s^i`. A layer takes sums of each polynomial; a square, in
the transformed form where products are pointwise, convolves them along i.
"""

from __future__ import annotations

import contextlib

import numpy as np

from tfprivacy_lab.checks import InputError, check_unmasked
from tfprivacy_lab.he.packing.batched import add_modular, modular_matmul
from tfprivacy_lab.he.plans.layers import Affine
from tfprivacy_lab.he.ring.network_parameters import NetworkParameters


def check_residues(
    name: str, residues, parameters: NetworkParameters, shape: tuple[int, ...], fresh: bool = False
) -> None:
    """Refuse what is not an array of residues of this shape, whatever its number of blocks.

    Args:
        name: What to call it in an error.
        residues: What should be an array.
        parameters: The ring.
        shape: The wanted one, but for the first axis.
        fresh: Whether all ciphertexts are fresh encryptions, whose second polynomial is never zero.

    Raises:
        InputError: naming the array and what differs.
    """
    check_unmasked(name, residues)
    if not isinstance(residues, np.ndarray) or residues.dtype != np.dtype(parameters.residue_dtype):
        found = getattr(residues, "dtype", type(residues).__name__)
        raise InputError(f"Expected {name} of dtype {np.dtype(parameters.residue_dtype)}, got {found}.")
    if residues.ndim != 5 or len(residues) < 1 or residues.shape[1:] != shape[1:]:
        raise InputError(f"Expected {name} of shape (blocks, {str(shape[1:])[1:]}, got {residues.shape}.")
    for index, prime in enumerate(parameters.primes):
        largest = int(residues[:, :, :, index].max())
        if largest >= prime:
            raise InputError(f"Expected residues of {name} below their prime {prime}, got {largest}.")
    if fresh and not residues[:, :, 1].any(axis=(2, 3)).all():
        raise InputError(_TRANSPARENT.format(name))


_TRANSPARENT = "Expected {} of fresh encryptions, got a ciphertext that hides nothing; encrypt again."


@contextlib.contextmanager
def refusing_transparent(name: str):
    """SEAL's refusal of a ciphertext whose polynomials but the first have become zero, as an InputError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "transparent" not in str(error):
            raise
        raise InputError(_TRANSPARENT.format(name)) from error


def evaluate_residues(layers: tuple[Affine, ...], residues: np.ndarray, modulus: int) -> np.ndarray:
    """The network on some positions of one prime.

    Args:
        layers: Integer layers, ``(sum |kernel| + 1) * modulus <= 2**53`` by column.
        residues: Shape (inputs, 2, positions), below the modulus.
        modulus: A prime of at most 31 bits.

    Returns:
        uint64, shape (outputs, polynomials, positions).
    """
    values = residues
    for number, layer in enumerate(layers):
        largest = int(np.abs(layer.kernel).sum(axis=0).max())
        assert (largest + 1) * modulus <= 2**53, "weights too large for float64"
        if number:
            values = square(values, modulus)
        values = _layer(layer, values, modulus)
    return values


def _layer(layer: Affine, values: np.ndarray, modulus: int) -> np.ndarray:
    """One affine layer on (inputs, polynomials, positions) modulo a prime; the bias goes to the first polynomial."""
    sums = layer.apply(values.astype(np.float64), layer.kernel.astype(np.float64))
    result = reduce_floats(sums, modulus)
    bias = np.array([value % modulus for value in layer.bias], dtype=np.uint64)
    add_modular(result[:, 0], np.tile(bias, len(layer.windows))[:, np.newaxis], modulus)
    return result


def reduce_floats(sums: np.ndarray, modulus: int) -> np.ndarray:
    """Integers in float64, of magnitude at most 2**53 - modulus, modulo a prime, as uint64; overwrites its argument.

    The quotient of float64 is off by at most one either way, and its product with the modulus exact.
    """
    quotient = np.floor(sums * (1.0 / modulus))
    quotient *= modulus
    sums -= quotient
    sums += modulus * (sums < 0)
    sums -= modulus * (sums >= modulus)
    return sums.astype(np.uint64)


def square(values: np.ndarray, modulus: int) -> np.ndarray:
    """The square of ciphertexts, as polynomials in the key: (inputs, k, positions) to (inputs, 2 k - 1, positions).

    For k of at most 3, an entry adds at most four products of two residues of 31 bits, below 2**64.
    """
    size = values.shape[1]
    assert size <= 3, size
    result = np.zeros((len(values), 2 * size - 1, values.shape[2]), np.uint64)
    for first in range(size):
        for second in range(first, size):
            product = values[:, first] * values[:, second]
            if first != second:
                product <<= np.uint64(1)
            result[:, first + second] += product
    result %= np.uint64(modulus)
    return result


def bfv_layer(layer: Affine, ciphertexts: np.ndarray, parameters: NetworkParameters) -> np.ndarray:
    """One dense layer on BFV ciphertexts in coefficient form.

    Args:
        layer: Integers, ``sum |kernel| * 2**27 <= 2**53`` by column.
        ciphertexts: Residues, shape (inputs, polynomials, primes, N).
        parameters: The ring.

    Returns:
        uint64, shape (outputs, polynomials, primes, N).
    """
    kernel, tail = np.ascontiguousarray(layer.dense_kernel().T, np.float64), ciphertexts.shape[1:]
    result = np.empty((layer.outputs, *tail), np.uint64)
    bias = bfv_constants(layer.full_bias(), (layer.outputs, 1, len(parameters.primes), 1), parameters)
    for index, prime in enumerate(parameters.primes):
        part = np.ascontiguousarray(ciphertexts[:, :, index]).reshape(layer.inputs, -1)
        product = modular_matmul(kernel, part, prime).reshape(layer.outputs, tail[0], tail[2])
        add_modular(product[:, 0, :1], bias[:, 0, index], prime)
        result[:, :, index] = product
    return result


def bfv_constants(values, shape: tuple[int, ...], parameters: NetworkParameters) -> np.ndarray:
    """Ciphertexts of public integers, in coefficient form, uint64 of shape (values, polynomials, primes, N)."""
    result = np.zeros(shape, np.uint64)
    q, t = parameters.modulus, parameters.plaintext_modulus
    for ciphertext, value in zip(result, map(int, values), strict=True):
        ciphertext[0, :, 0] = [(2 * q * value + t) // (2 * t) % prime for prime in parameters.primes]
    return result
