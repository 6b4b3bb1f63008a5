"""Numbers on shares are whole numbers mod 2^k that stand for multiples of 2^-f: how large, how fine.

A product of two such numbers carries 2f fraction bits until it is truncated, so sums of products must stay below
:math:`2^{k-2-2f}`; beyond, they wrap to something else, silently. That is refused beforehand, see
:mod:`tfprivacy_lab.mpc.jobs.ranges`.
"""

from __future__ import annotations

import dataclasses
import math

from tfprivacy_lab.checks import InputError, check_positive_int, settle

# Finest first; 64 bits cost half of the traffic of 128.
_CHOICES = ((64, 20), (64, 18), (64, 16), (128, 40), (128, 32), (128, 24))


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """Arithmetic on shares.

    Attributes:
        field_bits: k, 64 or 128.
        fraction_bits: f, bits behind the point.

    Raises:
        InputError: naming the argument.
    """

    field_bits: int
    fraction_bits: int

    def __post_init__(self):
        for name in ("field_bits", "fraction_bits"):
            settle(self, **{name: check_positive_int(name, getattr(self, name), at_most=128)})
        if self.field_bits not in (64, 128):
            raise InputError(f"Expected field_bits to be 64 or 128, got field_bits={self.field_bits!r}.")
        if not 8 <= self.fraction_bits <= self.field_bits // 2 - 8:
            raise InputError(
                f"Expected fraction_bits in [8, {self.field_bits // 2 - 8}], got fraction_bits={self.fraction_bits!r}."
            )

    @property
    def resolution(self) -> float:
        """The step between neighbouring numbers, :math:`2^{-f}`; also a bound on the error of one truncation."""
        return 2.0**-self.fraction_bits

    @property
    def largest(self) -> float:
        """No sum of products may reach this."""
        return 2.0 ** (self.field_bits - 2 - 2 * self.fraction_bits)


def candidates(fraction_bits: int | None = None) -> list[FixedPoint]:
    """Arithmetics to choose from, the cheapest and finest first; with ``fraction_bits``, those that have just these."""
    pairs = (
        _CHOICES if fraction_bits is None else [(k, fraction_bits) for k in (64, 128) if fraction_bits <= k // 2 - 8]
    )
    return [FixedPoint(*pair) for pair in pairs]


def choose_fixed_point(bound: float, among: list[FixedPoint] | None = None) -> FixedPoint:
    """The first arithmetic in which no intermediate value up to ``bound`` can wrap; 64 bits if they suffice.

    Args:
        bound: What no value passes.
        among: What to choose from; all of :func:`candidates` if left out.

    Raises:
        InputError: if none of them does.
    """
    among = among or candidates()
    for choice in among:
        if math.isfinite(bound) and bound < choice.largest:
            return choice
    size = f"2^{math.ceil(math.log2(bound))}" if math.isfinite(bound) and bound > 0 else "anything"
    last = among[-1]
    agreed = "" if len(among) > 2 else f" of fraction_bits={last.fraction_bits}, as agreed,"
    raise InputError(
        f"Overflow risk: in the worst case values reach {size}, and {last.field_bits} bits{agreed} hold less than "
        f"2^{round(math.log2(last.largest))}; set weight_range (clips the weights every step), or lower "
        "learning_rate, steps or feature_range."
    )
