"""What every plan of one sample in slots says in public, and the factors that its server meets the sample with."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np


class Factor(NamedTuple):
    """Weights or biases in slots, as they are encoded.

    Attributes:
        slots: float64, shape (..., S).
        scale: What the encoder multiplies by.
        level: How many primes are gone where they are used.
    """

    slots: np.ndarray
    scale: float
    level: int


class PublicSlotPlan:
    """What client and server both know: everything but the weights.

    A plan's digest names its class and fields, so that each plan has fields of its own: ``parameters``,
    ``input_range``, ``input_bits``, ``error_bound``, and the layout.

    Attributes:
        levels: Primes that are rescaled away.
        relinearises: Whether there is a square, which takes a key.
    """

    levels: ClassVar[int]
    relinearises: ClassVar[bool]

    @property
    def inputs(self) -> int:
        """Length of the input vector."""
        return self.layout.inputs

    @property
    def query_shape(self) -> tuple[int, int, int]:
        """(2, primes, N)."""
        return 2, len(self.parameters.primes), self.parameters.poly_modulus_degree

    @property
    def reply_shape(self) -> tuple[int, int, int, int]:
        """(replies, 2, primes left, N)."""
        left = len(self.parameters.primes) - self.levels
        return self.layout.replies, 2, left, self.parameters.poly_modulus_degree

    def summary(self) -> dict:
        """Parameters, levels, operations, keys and bytes, as numbers and strings."""
        return {
            "scheme": "ckks",
            "packing": "single",
            "poly_modulus_degree": self.parameters.poly_modulus_degree,
            "coeff_modulus_bits": self.parameters.coeff_modulus_bits,
            "levels": self.levels,
            "rotations": self.layout.rotations,
            "plaintext_products": self.layout.products,
            **self._costs(),
        }

    def _costs(self) -> dict:
        """Keys, bytes and the error bound."""
        digits, keys = len(self.parameters.primes), len(self.layout.steps) + self.relinearises
        return {
            "rotation_steps": list(self.layout.steps),
            "evaluation_keys": keys,
            "key_bytes": keys * digits * 2 * (digits + 1) * self.parameters.poly_modulus_degree * 8,
            "up_bytes": 8 * math.prod(self.query_shape),
            "down_bytes": 8 * math.prod(self.reply_shape),
            "error_bound": self.error_bound,
        }
