r"""The pinned parameter sets, their security, and the noise that decryption can meet.

**Security.** ``MAX_COEFF_MODULUS_BITS`` is the 2024 guidelines' table 5.2 (Bossuat et al. 2024, eprint
2024/463): ternary secret, error deviation about 3.2, at least 128 bits against classical attacks.
Every parameter set is checked against this table, whatever the library below would accept.

**Noise of one fresh ciphertext.** A public key is :math:`(b, a)` with :math:`b = -(a s + e)`. Encryption
adds to the plaintext :math:`(b u + e_1, a u + e_2)`, so that decryption meets

.. math:: v = -e u + e_1 + e_2 s.

:math:`u` and :math:`s` are uniform on {-1, 0, 1}; the coefficients of :math:`e, e_1, e_2` are differences
of two 21-bit Hamming weights, of variance :math:`\sigma^2 = 10.5`. Both laws are *strictly
sub-Gaussian*: :math:`E\,e^{\lambda X} \le e^{\lambda^2 Var(X)/2}`, since
:math:`(1 + 2\cosh\lambda)/3 \le e^{\lambda^2/3}` and :math:`\cosh^2(\lambda/2) \le e^{\lambda^2/4}`.

**One coefficient, for an integer weight column w.** The server returns :math:`\sum_i w_i v_i`. Given
the key's :math:`s` and :math:`e`, each coefficient is a sum of independent terms, sub-Gaussian with variance

.. math:: \|w\|_2^2 \, \big(\tfrac23 \|e\|_2^2 + \sigma^2 + \sigma^2 \|s\|_2^2\big), \qquad \|s\|_2^2 \le N,

and by Hsu, Kakade and Zhang 2012, theorem 2.1, with probability at least :math:`1 - 2^{-65}`
:math:`\|e\|_2^2 \le \sigma^2 (N + 2\sqrt{N x} + 2x)`, :math:`x = 65 \ln 2`. A union over the at most
:math:`2^{26}` coefficients that the largest reply holds gives all of them at most
:math:`\sqrt{2 \ln(2 \cdot 2^{26} \cdot 2^{65})}` deviations with probability :math:`1 - 2^{-65}`:
together a failure in a whole reply has probability at most :math:`2^{-64}`.

**One slot (CKKS).** The real or imaginary part of :math:`\sum_i w_i v_i` at a root :math:`\zeta` is
sub-Gaussian with variance

.. math:: \|w\|_2^2 \, \tfrac N2 \big(\tfrac23 |e(\zeta)|^2 + \sigma^2 + \sigma^2 |s(\zeta)|^2\big),

because :math:`\sum_k \cos^2(k\theta + \varphi) = N/2` at every odd 2N-th root. The same theorem in the
plane bounds :math:`|e(\zeta)|^2 \le \sigma^2 \tfrac N2 (2 + 2\sqrt{2x} + 2x)`, and :math:`|s(\zeta)|^2` with
2/3 for :math:`\sigma^2`, at all roots with probability :math:`1 - 2^{-66}` each,
:math:`x = \ln(2^{66} N/2)`.

**With a special prime p** SEAL encrypts modulo q p and divides by p: :math:`v` is divided by p too, and gains the
rounding :math:`\tau_0 + \tau_1 s` of the two polynomials. Modulo p a ciphertext is uniform as far as anyone can tell
(RLWE), so the :math:`\tau` are uniform on an interval of length one, strictly sub-Gaussian with variance 1/12: the
variance of one coefficient is

.. math:: \big(\tfrac23 \|e\|_2^2 + \sigma^2 + \sigma^2 \|s\|_2^2\big) / p^2 + (1 + \|s\|_2^2) / 12.

What a head may use of all this is in :mod:`tfprivacy_lab.he.quantization.limits`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.ring.ntt import smallest_root

MAX_COEFF_MODULUS_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430}
"""Largest bit length of q for 128-bit security, by ring degree (Bossuat et al. 2024, table 5.2)."""

MAX_FEATURES = 2048
MAX_CLASSES = 1000
MAX_MESSAGE_BYTES = 2**30
"""Largest message body; a reply spends 16 bytes on a coefficient, hence the union bound's 2**26."""

LIMB_BITS = 27
"""A residue is two limbs of at most 27 bits: low, and what is above."""

PACKINGS = ("batched", "coefficient")

_ERROR_VARIANCE = 10.5
_TERNARY_VARIANCE = 2 / 3
_REPLY_COEFFICIENTS_BITS = 26
DEVIATIONS = math.sqrt(2 * math.log(2) * (1 + _REPLY_COEFFICIENTS_BITS + 65))


@dataclasses.dataclass(frozen=True)
class Parameters:
    """One scheme's ring, moduli and fixed-point width, checked when made.

    Args:
        name: What a user calls the set.
        scheme: ``"bfv"`` or ``"ckks"``.
        poly_modulus_degree: Ring degree N, a power of two in ``MAX_COEFF_MODULUS_BITS``.
        coeff_modulus: The primes of q, each 1 modulo 2N and of at most 53 bits.
        plaintext_modulus: BFV's t, a prime, 1 modulo 2N; 0 for CKKS, which has none.
        feature_bits: Features become integers (BFV) or are scaled (CKKS) to at most ``2**feature_bits``.
        special_modulus: SEAL's special prime p, 1 modulo 2N, with which keys are made where q has several primes;
            1 if there is none.

    Raises:
        InputError: if q is longer than the table allows or a modulus does not fit the ring.

    Guarantee: 128-bit security of the encryption against classical attacks, after the table.

    Not covered: quantum attacks (the table's quantum column is lower); side channels of the library.
    """

    scheme: str
    poly_modulus_degree: int
    coeff_modulus: tuple[int, ...]
    plaintext_modulus: int
    feature_bits: int
    special_modulus: int = 1
    name: str = ""

    def __post_init__(self):
        check_choice("scheme", self.scheme, ("bfv", "ckks"))
        degree = check_choice("poly_modulus_degree", self.poly_modulus_degree, MAX_COEFF_MODULUS_BITS)
        limit = MAX_COEFF_MODULUS_BITS[degree]
        if self.coeff_modulus_bits > limit:
            raise InputError(
                f"Expected coeff_modulus of at most {limit} bits at poly_modulus_degree={degree} for 128-bit "
                f"security, got {self.coeff_modulus_bits} bits."
            )
        if len(self.key_primes) not in (1, len(self.coeff_modulus) + 1):
            raise InputError(
                f"Expected coeff_modulus to hold one prime, or more beside a special_modulus, got coeff_modulus="
                f"{self.coeff_modulus}, special_modulus={self.special_modulus}."
            )
        moduli = [("coeff_modulus", prime) for prime in self.key_primes]
        if self.scheme == "bfv":
            moduli.append(("plaintext_modulus", self.plaintext_modulus))
        elif self.plaintext_modulus != 0:
            raise InputError(f"Expected plaintext_modulus=0 for ckks, got {self.plaintext_modulus}.")
        for name, prime in moduli:
            if prime % (2 * degree) != 1 or not _is_prime(prime):
                raise InputError(f"Expected {name} to be a prime, 1 modulo {2 * degree}, got {prime}.")
        if any(prime.bit_length() > 2 * LIMB_BITS - 1 for prime in self.coeff_modulus):
            raise InputError(f"Expected primes of at most 53 bits, got coeff_modulus={self.coeff_modulus}.")

    @property
    def modulus(self) -> int:
        """The ciphertext modulus q."""
        return math.prod(self.coeff_modulus)

    @property
    def key_primes(self) -> tuple[int, ...]:
        """The primes of q, then the special one if there is one."""
        return self.coeff_modulus + (() if self.special_modulus == 1 else (self.special_modulus,))

    @property
    def sanitizes(self) -> bool:
        """Whether replies can be, and always are, sanitised: q has room for flooding."""
        return self.special_modulus != 1

    @property
    def packings(self) -> tuple[str, ...]:
        """The packings of :data:`PACKINGS` that compute under this set."""
        return PACKINGS[1:] if self.sanitizes else PACKINGS

    @property
    def coeff_modulus_bits(self) -> int:
        """Bit length of the product of all primes, the special one included: what security depends on."""
        return math.prod(self.key_primes).bit_length()

    @property
    def residue_bits(self) -> int:
        """Bits that hold a residue of any prime of q: what a compressed message spends on one."""
        return max(prime.bit_length() for prime in self.coeff_modulus)

    @property
    def max_feature(self) -> int:
        """Largest integer a quantised feature may be, ``2**feature_bits``."""
        return 2**self.feature_bits

    @property
    def bias_shift(self) -> int:
        """Integer biases count in steps of ``2**bias_shift``, so that they fit 53 bits beside any features."""
        return max(0, self.feature_bits - 31)

    @property
    def samples_per_block(self) -> int:
        """Samples in one ciphertext: N slots (BFV), or N/2 complex slots of two real numbers (CKKS)."""
        return self.poly_modulus_degree

    @property
    def ciphertext_bytes(self) -> int:
        """Two polynomials of N residues of 8 bytes for every prime of q."""
        return 2 * len(self.coeff_modulus) * self.poly_modulus_degree * 8

    def coefficient_noise_bound(self, l2_norm=1.0):
        """Bound on every noise coefficient of a reply, in units of q's residues (module docstring).

        Args:
            l2_norm: L2 norm of the integer weight column, scalar or array; 1 for a fresh ciphertext.

        Returns:
            The bound, of the shape of ``l2_norm``.

        Guarantee: exceeded anywhere in a reply with probability at most 2**-64.
        """
        variance = self.fresh_variance / self.special_modulus**2
        if self.special_modulus != 1:
            variance += (1 + self.poly_modulus_degree) / 12
        return DEVIATIONS * math.sqrt(variance) * l2_norm

    @property
    def fresh_variance(self) -> float:
        """Variance of a noise coefficient before any division by p."""
        degree, x = self.poly_modulus_degree, 65 * math.log(2)
        error_norm = _ERROR_VARIANCE * (degree + 2 * math.sqrt(degree * x) + 2 * x)
        return _TERNARY_VARIANCE * error_norm + _ERROR_VARIANCE * (1 + degree)

    def slot_noise_bound(self, l2_norm=1.0):
        """Bound on the real and imaginary noise of every CKKS slot of a reply (module docstring).

        Args:
            l2_norm: L2 norm of the integer weight column, scalar or array; 1 for a fresh ciphertext.

        Returns:
            The bound in plaintext units, of the shape of ``l2_norm``; divide by the scale for a value.

        Guarantee: exceeded anywhere in a reply with probability at most 2**-64.
        """
        half = self.poly_modulus_degree / 2
        x = 66 * math.log(2) + math.log(half)
        plane = half * (2 + 2 * math.sqrt(2 * x) + 2 * x)
        variance = half * _ERROR_VARIANCE * (2 * _TERNARY_VARIANCE * plane + 1)
        return DEVIATIONS * math.sqrt(variance) * l2_norm

    def products(self, features: int, classes: int) -> int:
        """Polynomial products that coefficient packing needs for a head: N // d classes share one."""
        return -(-classes // (self.poly_modulus_degree // features))

    @functools.cached_property
    def imaginary_unit(self) -> int:
        """The residue that X^{N/2} takes in the first half of a number-theoretic transform in SEAL's order.

        It is :math:`\\psi^{N/2}` for the smallest primitive 2N-th root :math:`\\psi` modulo q: position k of
        the bit-reversed transform is the value at :math:`\\psi^{2 rev(k) + 1}`, and ``rev(k)`` is even
        exactly in the first half.
        """
        q, order = self.modulus, 2 * self.poly_modulus_degree
        return pow(smallest_root(q, order), order // 4, q)


def _is_prime(number: int) -> bool:
    """Miller-Rabin with the first twelve primes: deterministic below 3.3e24 (Sorenson and Webster 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % p == 0 for p in bases):
        return number in bases
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    for base in bases:
        power = pow(base, (number - 1) >> twos, number)
        if power not in (1, number - 1) and not any(
            (power := power * power % number) == number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


PARAMETERS = {
    made.name: made
    for made in (
        Parameters("bfv", 2048, (9007199254614017,), 536813569, feature_bits=12, name="bfv"),
        Parameters("ckks", 2048, (9007199254614017,), 0, feature_bits=31, name="ckks"),
        Parameters(
            "bfv", 4096, (35184371884033, 35184371703809), 33538049, 10, special_modulus=40961, name="bfv-sanitized"
        ),
        Parameters("ckks", 4096, (35184371884033, 35184371703809), 0, 70, special_modulus=40961, name="ckks-sanitized"),
    )
}
"""The sets that client and server pin. N = 2048: the largest 53-bit prime; BFV's t = 29 bits balances the integer
range against the room for noise for heads of 128 to 2,048 inputs. N = 4096: the two largest 45-bit primes beside the
smallest special prime, 106 bits in all; t = 25 bits leaves 40 bits for flooding."""
