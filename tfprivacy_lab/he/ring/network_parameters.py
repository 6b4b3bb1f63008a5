r"""Parameter sets of whole networks: chains of primes, their security, and the noise of what is encrypted.

**Security.** As in :mod:`tfprivacy_lab.he.ring.parameters`: every set's product of *all* primes, the special one
included, is held against the 2024 table.

**Special prime.** SEAL encrypts under :math:`q p`, :math:`p` the last prime, then divides by :math:`p` and rounds;
ciphertexts live under :math:`q`. Decryption meets, with the symbols of the other module,

.. math:: v = (-e u + e_1 + e_2 s)/p + \delta_0 + \delta_1 s,

:math:`\delta_0, \delta_1` the roundings, at most one half a coefficient. They are taken as independent and uniform, as
the residues modulo p of a ciphertext look to anyone by the assumption that the encryption itself stands on;
the uniform law on an interval of length 1 is strictly sub-Gaussian with variance 1/12. So, given the key's s and e,
the real or imaginary part of :math:`\sum_i w_i v_i` at a root :math:`\zeta` is sub-Gaussian with variance

.. math::

    \|w\|_2^2\, \tfrac N2 \Big( \big(\tfrac23 |e(\zeta)|^2 + \sigma^2 + \sigma^2 |s(\zeta)|^2\big) / p^2
    + \tfrac1{12} \big(1 + |s(\zeta)|^2\big) \Big),

and a coefficient with the same but for :math:`N/2`, :math:`\|e\|_2^2` for :math:`|e(\zeta)|^2` and
:math:`\|s\|_2^2 \le N` for :math:`|s(\zeta)|^2`. Tails and unions as there, over at most :math:`2^{30}` numbers.
"""

from __future__ import annotations

import dataclasses
import math

from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS, _is_prime

ERROR_VARIANCE, TERNARY_VARIANCE = 10.5, 2 / 3
_UNION_BITS = 30
DEVIATIONS = math.sqrt(2 * math.log(2) * (1 + _UNION_BITS + 65))


@dataclasses.dataclass(frozen=True)
class NetworkParameters:
    """A ring and its chain of primes, checked when made.

    Args:
        scheme: ``"bfv"`` or ``"ckks"``.
        poly_modulus_degree: Ring degree N, a power of two in ``MAX_COEFF_MODULUS_BITS``.
        coeff_modulus: Distinct primes, 1 modulo 2N: those of ciphertexts, then the special one.
        plaintext_modulus: BFV's t, a prime, 1 modulo 2N; 0 for CKKS.

    Raises:
        InputError: if the primes' product is longer than the table allows or a modulus does not fit the ring.

    Guarantee: 128-bit security of the encryption, and of evaluation keys, against classical attacks.

    Not covered: quantum attacks; side channels of the library.
    """

    scheme: str
    poly_modulus_degree: int
    coeff_modulus: tuple[int, ...]
    plaintext_modulus: int = 0

    def __post_init__(self):
        check_choice("scheme", self.scheme, ("bfv", "ckks"))
        degree = check_choice("poly_modulus_degree", self.poly_modulus_degree, MAX_COEFF_MODULUS_BITS)
        limit = MAX_COEFF_MODULUS_BITS[degree]
        if self.coeff_modulus_bits > limit:
            raise InputError(
                f"Expected coeff_modulus of at most {limit} bits at poly_modulus_degree={degree} for 128-bit "
                f"security, got {self.coeff_modulus_bits} bits."
            )
        if len(self.coeff_modulus) < 2 or len(set(self.coeff_modulus)) < len(self.coeff_modulus):
            raise InputError(f"Expected coeff_modulus to hold 2 or more distinct primes, got {self.coeff_modulus}.")
        if (self.plaintext_modulus != 0) != (self.scheme == "bfv"):
            raise InputError(f"Expected plaintext_modulus for bfv alone, got {self.plaintext_modulus}.")
        moduli = [("coeff_modulus", prime) for prime in self.coeff_modulus]
        moduli += [("plaintext_modulus", self.plaintext_modulus)] if self.scheme == "bfv" else []
        for name, prime in moduli:
            if prime % (2 * degree) != 1 or not _is_prime(prime):
                raise InputError(f"Expected {name} to hold primes, 1 modulo {2 * degree}, got {prime}.")

    @property
    def primes(self) -> tuple[int, ...]:
        """The primes that ciphertexts live under."""
        return self.coeff_modulus[:-1]

    @property
    def key_primes(self) -> tuple[int, ...]:
        """All primes: what keys are made under."""
        return self.coeff_modulus

    @property
    def special_prime(self) -> int:
        """The prime that encryption and key switching divide by."""
        return self.coeff_modulus[-1]

    @property
    def modulus(self) -> int:
        """The ciphertext modulus q, without the special prime."""
        return math.prod(self.primes)

    @property
    def coeff_modulus_bits(self) -> int:
        """Bit length of all primes' product, what the table limits."""
        return math.prod(self.coeff_modulus).bit_length()

    @property
    def samples_per_block(self) -> int:
        """Slots for real numbers: N for BFV, N/2 for CKKS, whose imaginary parts a square would mix in."""
        return self.poly_modulus_degree // (1 if self.scheme == "bfv" else 2)

    @property
    def residue_dtype(self) -> str:
        """Little-endian type that a residue of the largest prime fits."""
        return "<u4" if max(self.primes) < 2**32 else "<u8"

    def ciphertext_bytes(self, size: int = 2) -> int:
        """Bytes of a ciphertext of ``size`` polynomials, residues in ``residue_dtype``."""
        return size * len(self.primes) * self.poly_modulus_degree * int(self.residue_dtype[-1])

    def holds_scale(self, scale: float, primes: int) -> bool:
        """Whether SEAL encodes and multiplies at this scale under the first so many primes: it wants a bit to spare."""
        return math.frexp(scale)[1] < math.prod(self.primes[:primes]).bit_length()

    def key_root_bound(self) -> float:
        """Bound on :math:`|s(\\zeta)|` at every root, exceeded with probability at most 2**-66."""
        return math.sqrt(TERNARY_VARIANCE * self._plane())

    def error_root_bound(self) -> float:
        """The same for a polynomial of key errors."""
        return math.sqrt(ERROR_VARIANCE * self._plane())

    def slot_noise_bound(self, l2_norm=1.0):
        """Bound on real and imaginary noise of every CKKS slot of a weighted sum of fresh ciphertexts.

        Args:
            l2_norm: L2 norm of the integer weights, scalar or array; 1 for a fresh ciphertext.

        Returns:
            The bound in units of the encoded integers, of the shape of ``l2_norm``.

        Guarantee: exceeded anywhere among 2**30 slots with probability at most 2**-64 (module docstring).
        """
        plane = self._plane()
        fresh = ERROR_VARIANCE * (2 * TERNARY_VARIANCE * plane + 1) / self.special_prime**2
        rounding = (1 + TERNARY_VARIANCE * plane) / 12
        return DEVIATIONS * math.sqrt(self.poly_modulus_degree / 2 * (fresh + rounding)) * l2_norm

    def coefficient_noise_bound(self, l2_norm=1.0):
        """The same bound for every coefficient, in units of q's residues (BFV)."""
        degree, x = self.poly_modulus_degree, 65 * math.log(2)
        error_norm = ERROR_VARIANCE * (degree + 2 * math.sqrt(degree * x) + 2 * x)
        fresh = (TERNARY_VARIANCE * error_norm + ERROR_VARIANCE * (1 + degree)) / self.special_prime**2
        return DEVIATIONS * math.sqrt(fresh + (1 + degree) / 12) * l2_norm

    def _plane(self) -> float:
        """The factor on a law's variance that bounds its polynomial's squared modulus at all roots."""
        half = self.poly_modulus_degree / 2
        x = 66 * math.log(2) + math.log(half)
        return half * (2 + 2 * math.sqrt(2 * x) + 2 * x)


def _set(scheme, degree, primes, plaintext_modulus=0) -> NetworkParameters:
    return NetworkParameters(scheme, degree, tuple(primes), plaintext_modulus)


BATCHED = {
    ("ckks", 1): _set("ckks", 4096, (1073692673, 1073668097, 1073651713, 40961)),
    ("ckks", 2): _set(
        "ckks", 8192, (2147352577, 2147205121, 2147074049, 2146959361, 2146713601, 2146418689, 268369921)
    ),
    ("bfv", 1): _set(
        "bfv", 8192, (9007199254429697, 9007199254364161, 9007199254331393, 9007199253921793), 1125899906826241
    ),
}
"""The pinned sets by scheme and number of squares. CKKS: primes of at most 31 bits, so that a residue times an
integer weight, summed, is exact in float64, and a sum of four products of residues exact in 64 bits. BFV: 53-bit
primes, taken in two limbs, and a t of 50 bits for the exact integers of one square; two squares would need more
than t's 60 bits."""

SINGLE = _set("ckks", 8192, (288230376150876161, 288230376150712321, 1073692673, 1152921504606830593))
"""One image: two primes of 58 bits hold the squared result, one of 30 is rescaled away after the first layer, and
the special prime of 60 makes key switching nearly free of noise."""

SLOTS = _set("ckks", 8192, (SINGLE.primes[0], 1099511480321, SINGLE.special_prime))
"""A dense head on features in slots: one product, whose scale of 40 bits is rescaled away, and rotations."""

DEEP = _set(
    "ckks",
    16384,
    (288230376150630401, 288230376149975041, 288230376147582977, 288230376147386369, 1073643521, 1152921504606748673),
)
"""One image and two squares: a prime of 30 bits is rescaled away after the first layer, one of 58 after each of the
others, and two of 58 hold the result."""
