r"""Coefficient packing: one product of two polynomials carries all logits of a sample.

A sample is :math:`x(X) = \sum_i x_i X^i`, a head of d inputs and c classes with d c <= N is

.. math:: w(X) = \sum_{j<c} \sum_{i<d} W_{ij} X^{d j + d - 1 - i},

and coefficient d j + d - 1 of :math:`x(X) w(X)` modulo :math:`X^N + 1` is logit j: another class's terms would need
an exponent that is off by a multiple of d, and none wraps (Huang et al. 2022, "Cheetah", section 3.1, eprint
2022/207). Larger heads take several products, of N // d classes each.

Ciphertexts travel in transformed form (:mod:`tfprivacy_lab.he.ring.ntt`), so that the server multiplies position by
position: no rotation, no evaluation key, and no homomorphic library.

The other coefficients of a product hold partial sums of the weights. A reply that is not sanitised
(:mod:`tfprivacy_lab.he.server.sanitize`) shows them to the holder of the key.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.ring.ntt import slot_positions, transform
from tfprivacy_lab.he.ring.parameters import Parameters


def logit_positions(features: int, classes: int, parameters: Parameters) -> list[np.ndarray]:
    """For every product, the coefficients that carry its logits, in the order of the classes."""
    most = parameters.poly_modulus_degree // features
    return [features * np.arange(min(most, classes - first)) + features - 1 for first in range(0, classes, most)]


def weight_polynomials(kernel: np.ndarray, parameters: Parameters) -> np.ndarray:
    """A head's integer weights as polynomials, int64, shape (products, N).

    Args:
        kernel: Integers, shape (d, c).
        parameters: The set.
    """
    features, classes = kernel.shape
    positions = logit_positions(features, classes, parameters)
    polynomials, first = np.zeros((len(positions), parameters.poly_modulus_degree), np.int64), 0
    for polynomial, ends in zip(polynomials, positions, strict=True):
        columns = kernel[::-1, first : first + len(ends)]
        polynomial[: columns.size] = columns.T.ravel()
        first += len(ends)
    return polynomials


def bias_polynomials(head: QuantizedHead) -> list[np.ndarray]:
    """The bias at the coefficients of the logits, as residues for every prime of q.

    BFV: :math:`round(q b / t)`. CKKS: b itself.

    Returns:
        For every prime, uint64, shape (products, N).
    """
    parameters = head.parameters
    features, classes = head.kernel.shape
    positions = logit_positions(features, classes, parameters)
    q, t, values = parameters.modulus, parameters.plaintext_modulus, iter(map(int, head.bias))
    whole = np.zeros((len(positions), parameters.poly_modulus_degree), object)
    for polynomial, ends in zip(whole, positions, strict=True):
        for end in ends:
            value = next(values) << parameters.bias_shift
            polynomial[end] = (2 * q * value + t) // (2 * t) if parameters.scheme == "bfv" else value
    return [np.mod(whole, prime).astype(np.uint64) for prime in parameters.coeff_modulus]


class PreparedHead:
    """A quantised head in the form in which it meets ciphertexts: one a head, scheme and step.

    Args:
        head: The quantised head, for coefficient packing.
    """

    def __init__(self, head: QuantizedHead):
        self.head, parameters = head, head.parameters
        polynomials = weight_polynomials(head.kernel, parameters)
        self.products = len(polynomials)
        self.transforms = [transform(prime, parameters.poly_modulus_degree) for prime in parameters.coeff_modulus]
        self._weights = [way.factor(way.forward(way.residues(polynomials))) for way in self.transforms]
        self.bias = bias_polynomials(head)
        self._transformed_bias = [way.forward(bias) for way, bias in zip(self.transforms, self.bias, strict=True)]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        factors = sum(array.nbytes for factor in self._weights for array in factor)
        return factors + sum(array.nbytes for array in (*self.bias, *self._transformed_bias))

    def products_of(self, ciphertext: np.ndarray) -> np.ndarray:
        """The ciphertext times every polynomial of weights, without bias.

        Args:
            ciphertext: uint64 residues, transformed, shape (2, primes, N).

        Returns:
            uint64, transformed, shape (products, 2, primes, N).
        """
        result = np.empty((self.products, *ciphertext.shape), np.uint64)
        for k, (way, (values, shares)) in enumerate(zip(self.transforms, self._weights, strict=True)):
            part = np.ascontiguousarray(ciphertext[:, k])
            for j in range(self.products):
                result[j, :, k] = way.multiply(part, (values[j], shares[j]))
        return result

    def add_bias(self, products: np.ndarray) -> None:
        """Add the bias to products, in place."""
        for k, (way, biases) in enumerate(zip(self.transforms, self._transformed_bias, strict=True)):
            for product, bias in zip(products, biases, strict=True):
                way.add(product[0, k], bias)


def bfv_slots(polynomial: np.ndarray, parameters: Parameters) -> np.ndarray:
    """What to give BFV's batch encoder so that it encodes this polynomial, int64 (N,).

    Args:
        polynomial: Integers, shape (up to N,), reduced modulo t.
        parameters: The set.
    """
    way = transform(parameters.plaintext_modulus, parameters.poly_modulus_degree)
    whole = np.zeros(parameters.poly_modulus_degree, np.int64)
    whole[: len(polynomial)] = polynomial
    return way.centred(way.forward(way.residues(whole)))[slot_positions(way.degree)]


def bfv_polynomial(slots: np.ndarray, parameters: Parameters) -> np.ndarray:
    """The polynomial that BFV's batch decoder shows as these slots, centred modulo t, int64 (N,)."""
    way = transform(parameters.plaintext_modulus, parameters.poly_modulus_degree)
    values = np.empty(way.degree, np.uint64)
    values[slot_positions(way.degree)] = way.residues(slots)
    return way.centred(way.inverse(values))


def ckks_slots(polynomial: np.ndarray, parameters: Parameters) -> np.ndarray:
    """What to give CKKS' encoder so that it encodes this polynomial: its values at zeta**(3**j), complex (N/2,)."""
    degree = parameters.poly_modulus_degree
    whole = np.zeros(degree)
    whole[: len(polynomial)] = polynomial
    # Values at all odd powers zeta**(2k+1), zeta = exp(i pi / N), by one FFT of twisted coefficients.
    twisted = whole * np.exp(1j * np.pi * np.arange(degree) / degree)
    return np.fft.ifft(twisted)[_odd_powers(degree)] * degree


def ckks_residues(polynomial: np.ndarray, parameters: Parameters) -> list[np.ndarray]:
    """Transforms of a polynomial of integers, exactly: what to add to an encryption of zero.

    CKKS' encoder works in float64, whose errors at a scale of 70 bits reach every coefficient, and by them a reply
    would tell sums of weights other than the logits.

    Args:
        polynomial: Integers in float64, of any size, shape (up to N,).
        parameters: The set.

    Returns:
        For every prime, uint64 (N,).
    """
    whole = np.zeros(parameters.poly_modulus_degree)
    whole[: len(polynomial)] = polynomial
    ways = [transform(prime, parameters.poly_modulus_degree) for prime in parameters.coeff_modulus]
    return [way.forward(np.mod(whole, float(way.prime)).astype(np.uint64)) for way in ways]  # fmod is exact


def ckks_polynomial(slots: np.ndarray, parameters: Parameters) -> np.ndarray:
    """The polynomial whose slots these are, float64 (N,); :func:`ckks_slots` undone."""
    degree = parameters.poly_modulus_degree
    values, where = np.empty(degree, np.complex128), _odd_powers(degree)
    values[where] = slots
    values[degree - 1 - where] = np.conj(slots)
    return (np.fft.fft(values) / degree * np.exp(-1j * np.pi * np.arange(degree) / degree)).real


def _odd_powers(degree: int) -> np.ndarray:
    """k of zeta**(2k+1) = zeta**(3**j), for every slot j."""
    powers = [1]
    for _ in range(degree // 2 - 1):
        powers.append(powers[-1] * 3 % (2 * degree))
    return (np.array(powers) - 1) // 2
