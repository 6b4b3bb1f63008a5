r"""The sigmoid on shares: a polynomial, chosen by the range of its argument and the error that is wanted.

Exponentials and quotients are dear on shares; sums and products are cheap. On :math:`[-c, c]` the sigmoid is one half
plus an odd function, here :math:`\sum_k a_k T_{2k+1}(z/c)` in Chebyshev polynomials, evaluated by Clenshaw's recurrence
(whose rounding errors grow like the square of the number of terms, where those of powers of z grow exponentially).
Arguments beyond c are clipped to it first: that costs two comparisons, and an error of :math:`1/(1+e^c)`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number

_CLIPS = tuple(range(3, 19))
_LARGEST_TERMS = 40
_GRID = 20_001


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """An approximation of :math:`1/(1+e^{-z})`.

    Attributes:
        limit: c; the polynomial holds on [-c, c].
        clips: Whether arguments may lie beyond c and are clipped.
        coefficients: :math:`a_k`, of :math:`T_{2k+1}(z/c)`.
        error: Largest deviation from the sigmoid, over all arguments in range, in exact arithmetic.
    """

    limit: float
    clips: bool
    coefficients: tuple[float, ...]
    error: float

    def __call__(self, z, clip=np.clip):
        """The value at ``z``; works on NumPy arrays and, with ``clip=tf.clip_by_value``, on tensors."""
        t = (clip(z, -self.limit, self.limit) if self.clips else z) * (1 / self.limit)
        y = 4 * t * t - 2
        later, last = 0 * t, 0 * t
        for coefficient in self.coefficients[:0:-1]:
            later, last = coefficient + y * later - last, later
        return 0.5 + t * (self.coefficients[0] + (y - 1) * later - last)

    def rounding_error(self, resolution: float) -> float:
        """Bound on what fixed-point arithmetic adds: each term's roundings, times how far they travel."""
        terms = len(self.coefficients)
        return 4 * resolution * terms * (terms + 2)


@functools.lru_cache(256)
def choose_sigmoid(bound: float, max_error: float = 1e-3, resolution: float = 0.0) -> Sigmoid:
    """The approximation with the fewest terms for arguments in [-bound, bound].

    Args:
        bound: Largest magnitude of an argument, > 0.
        max_error: Wanted bound on the deviation, in [1e-6, 0.1].
        resolution: Of the fixed-point arithmetic in which it is evaluated; 0 for exact arithmetic.

    Returns:
        A :class:`Sigmoid` whose ``error`` and ``rounding_error`` together are at most ``max_error``.

    Raises:
        InputError: naming the argument.

    Source: Trefethen 2013, ch. 8 (convergence), ch. 19 (Clenshaw).
    """
    bound = check_finite_number("bound", bound, above=0)
    max_error = check_finite_number("max_error", max_error, at_least=1e-6, at_most=0.1)
    limits = [bound] if bound <= _CLIPS[-1] else []
    limits += [limit for limit in _CLIPS if limit < bound and 1 / (1 + math.exp(limit)) < 0.6 * max_error]
    found = [fit for limit in limits if (fit := _fit(float(limit), limit < bound, max_error, resolution))]
    if not found:
        raise InputError(
            f"No sigmoid with max_error={max_error:g} in {_LARGEST_TERMS} terms and steps of {resolution:g}; allow a "
            "larger error, or more fraction bits."
        )
    # A comparison costs about as much as three products.
    return min(found, key=lambda one: len(one.coefficients) + (3 if one.clips else 0))


def _fit(limit: float, clips: bool, max_error: float, resolution: float) -> Sigmoid | None:
    all_coefficients = _series(limit)
    grid = np.linspace(0, limit, _GRID)
    beyond = 1 / (1 + math.exp(limit)) if clips else 0.0
    for terms in range(1, _LARGEST_TERMS + 1):
        candidate = Sigmoid(limit, clips, tuple(map(float, all_coefficients[:terms])), 0.0)
        # Beyond the limit the value stays what it is there, and the sigmoid moves on by less than ``beyond``.
        # A thousandth more, for what lies between the grid's points.
        rounding = candidate.rounding_error(resolution)
        if rounding > max_error:
            return None
        error = 1.001 * float(np.abs(candidate(grid) - 0.5 - _odd(grid)).max()) + beyond
        if error + rounding <= max_error:
            return dataclasses.replace(candidate, error=error)
    return None


@functools.lru_cache(256)
def _series(limit: float) -> np.ndarray:
    """Odd Chebyshev coefficients of the sigmoid less one half on [-limit, limit]."""
    nodes = np.cos((np.arange(4096) + 0.5) * np.pi / 4096)
    return np.polynomial.chebyshev.chebfit(nodes, _odd(limit * nodes), 2 * _LARGEST_TERMS - 1)[1::2]


def _odd(z):
    return 0.5 * np.tanh(z / 2)
