r"""How far logits of one image are likely to be off: noise added up as variances, not as magnitudes.

The worst case (:mod:`~tfprivacy_lab.he.single_image`) lets every division and every key switching err as far as it can,
all in one direction. Here they are random, and independent ones add their variances. Failure has probability
:math:`2^{-56}` an image, *under assumption U*: what a division rounds away, and the digits that a key switching takes,
are uniform and independent, as ciphertexts look to anyone without the key. Derivation: docs/theory/network_noise.md.

In short. A noise polynomial with independent coefficients of variance proxy v adds to
:math:`\mathrm{Re} \sum_b g_b\, n(\zeta_b)`, over distinct slots b, the proxy :math:`v \tfrac N2 \|g\|_2^2`, as the
powers of different roots are orthogonal. So each source of noise counts by the L2 norm of what the logit makes of it:
:math:`a_h = 2 M_h |V_h|` for a hidden value before its square, which inputs in range keep below :math:`M_h`. The
roundings of the server's own plaintexts are no chance: they are computed, and add up as magnitudes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from tfprivacy_lab.he.coefficients import ckks_polynomial, ckks_slots
from tfprivacy_lab.he.network_parameters import DEVIATIONS, ERROR_VARIANCE, NetworkParameters

_BORDER = 1e-4
"""A coefficient so near to a half may be rounded either way by an encoder in float64."""


class Sources:
    """Variance proxies of the noise of a ring, by slot, and roundings of plaintexts.

    Args:
        parameters: The ring.
    """

    def __init__(self, parameters: NetworkParameters):
        self.parameters, self.degree = parameters, parameters.poly_modulus_degree
        self.fresh = (parameters.slot_noise_bound() / DEVIATIONS) ** 2
        self.division = self.degree / 24 * (1 + parameters.key_root_bound() ** 2)

    @functools.cached_property
    def _digits(self) -> np.ndarray:
        """Bound on the modulus, by slot, of a polynomial uniform on [0, 1): its mean part, and deviations."""
        powers = np.ones(self.degree // 2, np.int64)
        for j in range(1, len(powers)):
            powers[j] = powers[j - 1] * 3 % (2 * self.degree)
        mean = 0.5 / np.abs(np.sin(np.pi * powers / self.degree / 2))
        return mean + DEVIATIONS * math.sqrt(2 * self.degree / 24)

    def switching(self, primes: int, stride: int) -> float:
        """Of a key switching under so many primes, in the mean of any slots that are ``stride`` apart."""
        shares = sum((prime / self.parameters.special_prime) ** 2 for prime in self.parameters.primes[:primes])
        squares = np.square(self._digits).reshape(-1, stride).mean(axis=0).max()
        return shares * ERROR_VARIANCE * self.degree / 2 * float(squares) + self.division

    def folded(self, primes: int, stride: int) -> float:
        """Of the rotations and sums that add up all slots that are ``stride`` apart, for each of the sums."""
        total, slots = 0.0, self.degree // 2
        for step in (stride << bit for bit in range((slots // stride).bit_length() - 1)):
            total += slots // (2 * step) * self.switching(primes, 2 * step)
        return total

    def rounding(self, slots: np.ndarray, scale: float) -> np.ndarray:
        """What a plaintext of these slots is off by, in each: modulus, in units of 1 / scale."""
        exact = ckks_polynomial(slots * scale, self.parameters)
        off = np.rint(exact) - exact
        border = int((np.abs(off) > 0.5 - _BORDER).sum())
        whole = not np.rint(exact).any()  # the constant 1 stands for a plaintext of zero
        return np.abs(ckks_slots(off, self.parameters)) + border + whole


def summed(values: np.ndarray, stride: int) -> float:
    """The largest sum of entries ``stride`` apart."""
    return float(values.reshape(-1, stride).sum(axis=0).max())


@dataclasses.dataclass(frozen=True)
class Layer:
    """Values before a square, in the network's own unit, for every row of slots.

    Attributes:
        values: Bound on their magnitudes, (rows,).
        fixed: Bound on what is no chance in their errors, (rows,).
        variance: For magnitudes a (..., rows), the proxy of the variance of :math:`\\sum_h a_h e_h`.
    """

    values: np.ndarray
    fixed: np.ndarray
    variance: Callable

    @functools.cached_property
    def noise(self) -> np.ndarray:
        """Bound on the modulus of every error, (rows,)."""
        return self.fixed + math.sqrt(2) * DEVIATIONS * np.sqrt(self.variance(np.eye(len(self.values))))


def first_layer(sources: Sources, layout, layer, largest: float, scale: float, prime: int, primes: int) -> Layer:
    """The layer of :mod:`~tfprivacy_lab.he.diagonals`, with factors at the scale of the prime rescaled away.

    Args:
        sources: Of the ring.
        layout: Slots and rotations.
        layer: Float, affine.
        largest: Bound on an input.
        scale: Of the inputs.
        prime: Rescaled away.
        primes: Of the ciphertext before.
    """
    kernel, half = layer.dense_kernel(), sources.degree / 2
    magnitudes = np.pad(np.abs(kernel), ((0, 0), (0, layout.rows - kernel.shape[1])))
    roundings = [sources.rounding(row, prime) for giant in layout.first_layer(kernel) for row in giant]
    most = max(float(one.max()) for one in roundings) / prime
    before = sources.fresh + (layout.baby_steps - 1) * sources.switching(primes, layout.slots)
    after = layout.blocks * (layout.giant_steps - 1) * sources.switching(primes - 1, layout.rows)
    after += layout.blocks * layout.giant_steps * sources.division + sources.folded(primes - 1, layout.rows)

    def variance(weights: np.ndarray) -> np.ndarray:
        through = np.linalg.norm(weights @ magnitudes.T, axis=-1)
        through = through + most * math.sqrt(layout.slots) * weights.sum(axis=-1)
        return (before * through**2 + after * np.square(weights).sum(axis=-1)) / scale**2

    fixed = sum(summed(one, layout.rows) for one in roundings) * largest / prime + half / scale
    # The encoder rounds the inputs, too: N/2 at most, as that is no chance that is known.
    fixed = fixed + half * (magnitudes.sum(axis=0) + most * layout.blocks * layout.diagonals) / scale
    bias = np.pad(np.abs(layer.full_bias()), (0, layout.rows - kernel.shape[1]))
    return Layer(magnitudes.sum(axis=0) * largest + bias, fixed, variance)


def middle_layer(sources: Sources, layout, before: Layer, layer, scales, factor: float, primes: int) -> Layer:
    """The square of the first layer and the second of :mod:`~tfprivacy_lab.he.deep_layout`.

    Args:
        sources: Of the ring.
        layout: Slots and rotations.
        before: The first layer.
        layer: Float, affine.
        scales: Before the square, and of the outcome.
        factor: Scale of the plaintexts.
        primes: Of the ciphertext that is squared.
    """
    rows, width, slots = len(before.values), layout.end.rows, layout.slots
    kernel, squares = layer.dense_kernel(), np.tile(np.square(before.values), slots // rows)
    magnitudes = np.pad(np.abs(kernel), ((0, rows - kernel.shape[0]), (0, width - kernel.shape[1])))
    rounded, most = 0.0, 0.0
    for giant in layout.middle_layer(kernel):
        for baby, row in enumerate(giant):
            off = sources.rounding(row, factor) / factor
            rounded, most = rounded + summed(off * np.roll(squares, -baby), width), max(most, float(off.max()))
    weights_of = magnitudes + slots // rows * most
    switched = layout.baby_steps * sources.switching(primes, slots)
    after = slots // width * (layout.giant_steps - 1) * sources.switching(primes - 1, width)
    after += slots // width * layout.giant_steps * sources.division + sources.folded(primes - 1, width)

    def variance(weights: np.ndarray) -> np.ndarray:
        through = weights @ weights_of.T
        noise = before.variance(2 * before.values * through)
        spread = np.linalg.norm(through, axis=-1) + most * math.sqrt(slots) * weights.sum(axis=-1)
        return noise + switched * spread**2 / scales[0] ** 4 + after * np.square(weights).sum(axis=-1) / scales[1] ** 2

    errors = 2 * before.values * before.fixed + np.square(before.noise)
    fixed = errors @ weights_of + rounded + sources.degree / 2 / scales[1]
    bias = np.pad(np.abs(layer.full_bias()), (0, width - kernel.shape[1]))
    return Layer(np.square(before.values) @ magnitudes + bias, fixed, variance)


def last_layer(sources: Sources, layout, before: Layer, layer, scale: float, factor: float, primes: int) -> float:
    """The square of what is before and the last layer: the bound on any logit's error.

    Args:
        sources: Of the ring.
        layout: Slots and rotations.
        before: The layer before.
        layer: Float, affine.
        scale: Before the square.
        factor: Scale of the plaintexts.
        primes: Of the ciphertext that is squared; the last is rescaled away.
    """
    rows, single, outputs = len(before.values), sources.switching(primes, layout.slots), layer.outputs
    factors = layout.second_layer(layer.dense_kernel())
    off = np.stack([sources.rounding(row, factor) for row in factors]).reshape(-1, rows)[:outputs] / factor
    exact = np.abs(factors).reshape(-1, rows)[:outputs]
    weights, squares, unit = exact + off, np.square(before.values), scale**2 * factor
    variance = before.variance(2 * before.values * weights) + single * np.square(weights).sum(axis=1) / scale**4
    variance += ((rows - 1) * single + sources.parameters.primes[primes - 1] ** 2 * sources.division) / unit**2
    fixed = weights @ (2 * before.values * before.fixed + np.square(before.noise)) + off @ squares
    fixed += sources.degree / 2 / unit + 2.0**-40 * (exact @ squares + np.abs(layer.full_bias()))
    return float((fixed + DEVIATIONS * np.sqrt(variance)).max())
