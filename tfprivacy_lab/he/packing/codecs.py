"""From features to plaintexts and back to logits: a codec a packing, which knows of no key.

``encode`` quantises features and lays them out as plaintexts; ``decode`` finds the logits in the plaintexts of a reply,
counted in the steps of features and weights. Between the two, ``sent`` and ``received`` turn a ciphertext from the form
in which SEAL holds it into that in which its packing sends it, and back.

An encoder is given what its scheme counts in: BFV the integers themselves, CKKS these over ``2**feature_bits``, which
is its scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfprivacy_lab.checks import check_choice
from tfprivacy_lab.he.packing import coefficient
from tfprivacy_lab.he.packing.batched import add_modular, block_count, block_samples, block_slots
from tfprivacy_lab.he.quantization.steps import Steps
from tfprivacy_lab.he.ring.ntt import transform
from tfprivacy_lab.he.ring.parameters import Parameters


class Plaintext(NamedTuple):
    """What becomes one ciphertext.

    Attributes:
        slots: What the encoder is given: int64 (N,) for BFV, complex128 (N/2,) for CKKS.
        residues: What is added to the ciphertext as it is sent, past the encoder: for every prime, uint64 (N,).
    """

    slots: np.ndarray
    residues: Sequence[np.ndarray] = ()


class BatchedCodec:
    """A ciphertext a feature and block of samples (:mod:`.batched`), sent as SEAL holds it.

    Args:
        parameters: The set.
    """

    def __init__(self, parameters: Parameters):
        self._parameters = parameters

    def encode(self, features: np.ndarray, steps: Steps) -> Iterator[Plaintext]:
        """The plaintexts of a batch, block by block and of each the columns.

        Args:
            features: float64, shape (samples, d).
            steps: What their integers count.
        """
        size = self._parameters.samples_per_block
        for first in range(0, len(features), size):
            rows = _for_encoder(features[first : first + size], steps, self._parameters)
            yield from map(Plaintext, block_slots(rows, self._parameters))

    def sent(self, ciphertext: np.ndarray, plaintext: Plaintext) -> np.ndarray:
        """A fresh ciphertext of a plaintext, uint64 (2, primes, N), as it is sent."""
        return ciphertext

    def received(self, ciphertext: np.ndarray) -> np.ndarray:
        """A ciphertext of a reply, uint64 (2, primes, N), as SEAL holds it."""
        return ciphertext

    def decode(self, blocks: Iterable[Iterable[np.ndarray]], samples: int, features: int, classes: int) -> np.ndarray:
        """The logits of a reply, counted in steps.

        Args:
            blocks: Of every block, the slots of each class.
            samples, features, classes: Of the batch and the head.

        Returns:
            int64 for BFV, float64 for CKKS, shape (samples, classes).
        """
        values, size = _empty(samples, classes, self._parameters), self._parameters.samples_per_block
        for first, columns in zip(range(0, samples, size), blocks, strict=True):
            rows = values[first : first + size]
            for column, slots in zip(rows.T, columns, strict=True):
                column[:] = block_samples(slots, self._parameters)[: len(rows)]
        return _in_steps(values, self._parameters)


class CoefficientCodec:
    """A ciphertext a sample (:mod:`.coefficient`), sent transformed, as CKKS' are anyway.

    Args:
        parameters: The set.
    """

    def __init__(self, parameters: Parameters):
        self._parameters, degree = parameters, parameters.poly_modulus_degree
        if parameters.scheme == "bfv":
            self._slots, self._polynomial = coefficient.bfv_slots, coefficient.bfv_polynomial
            self._transforms = [transform(prime, degree) for prime in parameters.coeff_modulus]
        else:
            self._slots, self._polynomial, self._transforms = coefficient.ckks_slots, coefficient.ckks_polynomial, []

    def encode(self, features: np.ndarray, steps: Steps) -> Iterator[Plaintext]:
        """The plaintexts of a batch, sample by sample; Args: as of :meth:`BatchedCodec.encode`."""
        for row in _for_encoder(features, steps, self._parameters):
            yield Plaintext(self._slots(row, self._parameters))

    def sent(self, ciphertext: np.ndarray, plaintext: Plaintext) -> np.ndarray:
        """As :meth:`BatchedCodec.sent`."""
        residues = ciphertext.copy()
        for k, way in enumerate(self._transforms):
            residues[:, k] = way.forward(residues[:, k])
        return residues

    def received(self, ciphertext: np.ndarray) -> np.ndarray:
        """As :meth:`BatchedCodec.received`."""
        residues = ciphertext.copy()
        for k, way in enumerate(self._transforms):
            residues[:, k] = way.inverse(residues[:, k])
        return residues

    def decode(self, products: Iterable[Iterable[np.ndarray]], samples: int, features: int, classes: int) -> np.ndarray:
        """The logits of a reply, counted in steps.

        Args:
            products: Of every sample, the slots of each product.
            samples, features, classes: Of the batch and the head.

        Returns:
            As :meth:`BatchedCodec.decode`.
        """
        values = _empty(samples, classes, self._parameters)
        ends = coefficient.logit_positions(features, classes, self._parameters)
        for row, plaintexts in zip(values, products, strict=True):
            found = zip(plaintexts, ends, strict=True)
            row[:] = np.concatenate([self._polynomial(slots, self._parameters)[places] for slots, places in found])
        return _in_steps(values, self._parameters)


class ExactCoefficientCodec(CoefficientCodec):
    """CKKS' integers added to encryptions of zero, past the encoder and its rounding (:func:`.ckks_residues`)."""

    def encode(self, features: np.ndarray, steps: Steps) -> Iterator[Plaintext]:
        """The plaintexts of a batch, sample by sample; Args: as of :meth:`BatchedCodec.encode`."""
        zeros = np.zeros(self._parameters.poly_modulus_degree // 2, np.complex128)
        for row in _integers(features, steps):
            yield Plaintext(zeros, coefficient.ckks_residues(row, self._parameters))

    def sent(self, ciphertext: np.ndarray, plaintext: Plaintext) -> np.ndarray:
        """As :meth:`BatchedCodec.sent`."""
        residues = ciphertext.copy()
        for k, prime in enumerate(self._parameters.coeff_modulus):
            add_modular(residues[0, k], plaintext.residues[k], prime)
        return residues


def codec_of(packing: str, parameters: Parameters) -> BatchedCodec | CoefficientCodec:
    """The codec of a packing, ``"batched"`` or ``"coefficient"``, under a set."""
    if packing == "batched":
        return BatchedCodec(parameters)
    exact = parameters.scheme == "ckks" and parameters.sanitizes
    return (ExactCoefficientCodec if exact else CoefficientCodec)(parameters)


def choose_packing(packing: str, samples: int, columns: int, parameters: Parameters) -> str:
    """The packing asked for, or for "auto" that of the smaller query, and under CKKS of the smaller error.

    Raises:
        InputError: if the set has no such packing.
    """
    if packing != "auto":
        return check_choice("packing", packing, parameters.packings)
    worth = 1.0
    if parameters.scheme == "ckks":  # bytes that the smaller error of coefficients is worth
        worth = parameters.slot_noise_bound() / parameters.coefficient_noise_bound()
    fewer = 2 * samples <= block_count(samples, parameters) * columns * worth
    return "coefficient" if fewer or parameters.sanitizes else "batched"


def _integers(features: np.ndarray, steps: Steps) -> np.ndarray:
    """Features in steps, rounded, float64."""
    return np.rint(np.ldexp(features, -steps.exponents(features.shape[1])))


def _for_encoder(features: np.ndarray, steps: Steps, parameters: Parameters) -> np.ndarray:
    """BFV: integers. CKKS: at most 1, which the encoder's scale makes at most ``2**feature_bits``."""
    if parameters.scheme == "bfv":
        return _integers(features, steps).astype(np.int64)
    return np.ldexp(features, -steps.exponents(features.shape[1]) - parameters.feature_bits)


def _empty(samples: int, classes: int, parameters: Parameters) -> np.ndarray:
    """Room for what the decoder shows."""
    return np.empty((samples, classes), np.int64 if parameters.scheme == "bfv" else np.float64)


def _in_steps(values: np.ndarray, parameters: Parameters) -> np.ndarray:
    """What the decoder shows, counted in steps."""
    return values if parameters.scheme == "bfv" else np.ldexp(values, parameters.feature_bits)
