r"""How far logits of one image are likely to be off: noise added up as variances, not as magnitudes.

The worst case (:mod:`.plans.single_image`) lets every division and every key switching err as far as it can,
all in one direction. Here they are random, and independent ones add their variances. Failure has probability
:math:`2^{-56}` an image, *under assumption U*: what a division rounds away, and the digits that a key switching takes,
are uniform and independent, as ciphertexts look to anyone without the key. Derivation: docs/theory/network_noise.md.

In short. A noise polynomial with independent coefficients of variance proxy v adds to
:math:`\mathrm{Re} \sum_b g_b\, n(\zeta_b)`, over distinct slots b, the proxy :math:`v \tfrac N2 \|g\|_2^2`, as the
powers of different roots are orthogonal. So each source of noise counts by the L2 norm of what the logit makes of it:
:math:`a_h = 2 M_h |V_h|` for a hidden value before its square, which inputs in range keep below :math:`M_h`. The
roundings of the server's own plaintexts are no chance: they are computed, as changes of weights, and bounded over all
inputs in range (:mod:`~tfprivacy_lab.he.plans.box_bounds`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from tfprivacy_lab.he.packing.coefficient import ckks_polynomial, ckks_slots
from tfprivacy_lab.he.plans.box_bounds import SquaresOverBox
from tfprivacy_lab.he.plans.network import interval, largest_of, square_interval
from tfprivacy_lab.he.ring.network_parameters import DEVIATIONS, ERROR_VARIANCE, NetworkParameters

_FLOAT64 = 2.0**-44
"""Relative L2 error of two transforms of up to 2**15 numbers in float64 (Higham 2002, theorem 24.2), and more."""


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

    def rounding(self, slots: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
        """What a plaintext of these slots is off by, in each, real, in units of 1 / scale; and how far that is unsure.

        A coefficient that is as near to a half as float64 errs may be rounded either way.
        """
        exact = ckks_polynomial(slots * scale, self.parameters)
        border = _FLOAT64 * math.sqrt(float(np.mean(np.square(slots)))) * scale  # bounds all coefficients' L2 error
        rounded = np.rint(exact)
        unsure = int((np.abs(rounded - exact) > 0.5 - border).sum())
        if not rounded.any():  # the constant 1 stands for a plaintext of zero
            rounded[0], unsure = 1.0, unsure + bool(unsure)
        off = ckks_slots(rounded - exact, self.parameters)
        return off.real, unsure + math.sqrt(self.degree) * border + float(np.abs(off.imag).max())

    def deviations(self, largest: float) -> float:
        """Standard deviations to allow for: the union bound's, and a share for the encoder's rounding of inputs.

        By Cauchy and Schwarz that is at most :math:`\\tfrac12 \\sqrt N\\, (\\tfrac N2 \\|g\\|_2^2)^{1/2}`, a fraction
        of what is allowed for fresh noise, which counts by the same :math:`\\|g\\|_2`.

        Args:
            largest: Bound on an input, at its scale.
        """
        most = self.degree / math.sqrt(8) + _FLOAT64 * math.sqrt(self.degree / 2) * largest
        return DEVIATIONS + most / math.sqrt(self.fresh)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Values before a square, in the network's own unit, for every row of slots.

    Attributes:
        low, high: Bounds on them, (rows,).
        fixed: Bound on what is no chance in their errors, (rows,).
        rest: Of this, what is no change of weights that is known, (rows,).
        squares: What the known changes make of squares, if the values are linear in the inputs.
        variance: For magnitudes a (..., rows), the proxy of the variance of :math:`\\sum_h a_h e_h`.
        deviations: How many of its square roots are allowed for.
    """

    low: np.ndarray
    high: np.ndarray
    fixed: np.ndarray
    rest: np.ndarray
    squares: SquaresOverBox | None
    variance: Callable
    deviations: float

    @property
    def values(self) -> np.ndarray:
        """Bound on their magnitudes, (rows,)."""
        return largest_of(self.low, self.high)

    @functools.cached_property
    def noise(self) -> np.ndarray:
        """Bound on the modulus of every error, (rows,)."""
        return self.fixed + math.sqrt(2) * self.deviations * np.sqrt(self.variance(np.eye(len(self.values))))

    def squared(self, kernel: np.ndarray, change: np.ndarray, unsure: np.ndarray) -> np.ndarray:
        """Bound on what is no chance in sums of squares, :math:`\\sum_h V_h z_h^2`, by output.

        Args:
            kernel: V, (hidden, outputs).
            change: What V is off by, (rows, outputs).
            unsure: How far this may be wrong, of the same shape.
        """
        hidden, outputs = kernel.shape
        weights = np.zeros_like(change)
        weights[:hidden, :outputs] = np.abs(kernel)
        off, first, squares = np.abs(change) + unsure, 2 * self.values * self.fixed, np.square(self.values)
        before, here = first @ weights, squares @ np.abs(change)
        if self.squares is not None:
            known = _padded(self.squares.changes(kernel), change.shape[1])
            before = np.minimum(before, known + (2 * self.values * self.rest) @ weights)
            here = np.minimum(here, largest_of(*self.squares.values(change[:hidden])))
        return before + here + first @ off + squares @ unsure + np.square(self.noise) @ (weights + off)


def first_layer(sources: Sources, layout, layer, input_range, scale: float, prime: int, primes: int) -> Layer:
    """The layer of :mod:`~tfprivacy_lab.he.packing.diagonal`, with factors at the scale of the prime rescaled away.

    Args:
        sources: Of the ring.
        layout: Slots and rotations.
        layer: Float, affine.
        input_range: Lowest and highest input.
        scale: Of the inputs.
        prime: Rescaled away.
        primes: Of the ciphertext before.
    """
    kernel, largest, places = layer.dense_kernel(), max(map(abs, input_range)), np.arange(layout.slots)
    magnitudes = np.pad(np.abs(kernel), ((0, 0), (0, layout.rows - kernel.shape[1])))
    change, rest, most = np.zeros((layout.inputs + 1, layout.rows)), np.zeros(layout.rows), 0.0
    for giant, rows in enumerate(layout.first_layer(kernel)):
        for baby, row in enumerate(rows):
            off, unsure = sources.rounding(row, prime)
            shown, outputs = np.roll(layout.layout, -baby), (places - giant * layout.baby_steps) % layout.rows
            np.add.at(change, (shown, outputs), off / prime)
            rest += np.bincount(outputs[shown < layout.inputs], minlength=layout.rows) * unsure / prime
            most = max(most, float(np.abs(off).max() + unsure) / prime)
    before = sources.fresh + (layout.baby_steps - 1) * sources.switching(primes, layout.slots)
    after = layout.blocks * (layout.giant_steps - 1) * sources.switching(primes - 1, layout.rows)
    after += layout.blocks * layout.giant_steps * sources.division + sources.folded(primes - 1, layout.rows)

    def variance(weights: np.ndarray) -> np.ndarray:
        through = np.linalg.norm(weights @ magnitudes.T, axis=-1)
        through = through + most * math.sqrt(layout.slots) * weights.sum(axis=-1)
        return (before * through**2 + after * np.square(weights).sum(axis=-1)) / scale**2

    ends = (np.full(layer.inputs, float(end)) for end in input_range)
    low, high = (_padded(end, layout.rows) for end in interval(layer, *ends))
    change = change[:-1]  # where no input stands there is noise alone
    rest = rest * largest + sources.degree / 2 / scale
    fixed = np.abs(change).sum(axis=0) * largest + rest
    squares = SquaresOverBox(kernel, change[:, : layer.outputs], layer.full_bias(), input_range)
    return Layer(low, high, fixed, rest, squares, variance, sources.deviations(largest * scale))


def middle_layer(sources: Sources, layout, before: Layer, layer, scales, factor: float, primes: int) -> Layer:
    """The square of the first layer and the second of :mod:`~tfprivacy_lab.he.packing.two_diagonals`.

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
    kernel, places = layer.dense_kernel(), np.arange(layout.slots)
    magnitudes = np.pad(np.abs(kernel), ((0, rows - kernel.shape[0]), (0, width - kernel.shape[1])))
    rounded, unsure, most = np.zeros((rows, width)), np.zeros((rows, width)), 0.0
    for giant, factors in enumerate(layout.middle_layer(kernel)):
        for baby, row in enumerate(factors):
            off, either = sources.rounding(row, factor)
            # A hidden value stands in many slots, and what all of them are off by adds up with its sign.
            pairs = (places + baby) % rows, (places - giant * layout.baby_steps) % width
            np.add.at(rounded, pairs, off / factor)
            np.add.at(unsure, pairs, either / factor)
            most = max(most, float(np.abs(off).max() + either) / factor)
    weights_of = magnitudes + slots // rows * most
    switched = layout.baby_steps * sources.switching(primes, slots)
    after = slots // width * (layout.giant_steps - 1) * sources.switching(primes - 1, width)
    after += slots // width * layout.giant_steps * sources.division + sources.folded(primes - 1, width)

    def variance(weights: np.ndarray) -> np.ndarray:
        through = weights @ weights_of.T
        noise = before.variance(2 * before.values * through)
        spread = np.linalg.norm(through, axis=-1) + most * math.sqrt(slots) * weights.sum(axis=-1)
        return noise + switched * spread**2 / scales[0] ** 4 + after * np.square(weights).sum(axis=-1) / scales[1] ** 2

    fixed = before.squared(kernel, rounded, unsure) + sources.degree / 2 / scales[1]
    ends = square_interval(before.low[: layer.inputs], before.high[: layer.inputs])
    low, high = (_padded(end, width) for end in interval(layer, *ends))
    if before.squares is not None:
        least, greatest = (_padded(end + layer.full_bias(), width) for end in before.squares.values(kernel))
        low, high = np.maximum(low, least), np.minimum(high, greatest)
    return Layer(low, high, fixed, fixed, None, variance, before.deviations)


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
    roundings = [sources.rounding(row, factor) for row in factors]
    change = np.stack([off for off, _ in roundings]).reshape(-1, rows)[:outputs] / factor
    unsure = np.repeat([either for _, either in roundings], layout.slots).reshape(-1, rows)[:outputs] / factor
    exact = np.abs(factors).reshape(-1, rows)[:outputs]
    weights, squares, unit = exact + np.abs(change) + unsure, np.square(before.values), scale**2 * factor
    variance = before.variance(2 * before.values * weights) + single * np.square(weights).sum(axis=1) / scale**4
    variance += ((rows - 1) * single + sources.parameters.primes[primes - 1] ** 2 * sources.division) / unit**2
    fixed = before.squared(layer.dense_kernel(), change.T, unsure.T)
    fixed += sources.degree / 2 / unit + 2.0**-40 * (exact @ squares + np.abs(layer.full_bias()))
    return float((fixed + before.deviations * np.sqrt(variance)).max())


def head_in_blocks(sources: Sources, layout, layer, input_range, scale: float, prime: int) -> float:
    """A head of :class:`~tfprivacy_lab.he.plans.slot_head.DiagonalRows`: the bound on any logit's error.

    Args:
        sources, layout, layer, input_range, scale, prime: As of :func:`first_layer`, under two primes.
    """
    logits = first_layer(sources, layout, layer, input_range, scale, prime, 2)
    noise = logits.deviations * np.sqrt(logits.variance(np.eye(layout.rows)))
    return float((logits.fixed + noise + 2.0**-40 * logits.values).max())


def head_in_rows(sources: Sources, layout, layer, input_range, scale: float, prime: int) -> float:
    """A head of :class:`~tfprivacy_lab.he.plans.slot_head.NaiveRows`: the bound on any logit's error.

    Args:
        sources, layout, layer, input_range, scale, prime: As of :func:`head_in_blocks`.
    """
    kernel, width, largest = layer.dense_kernel(), layout.width, max(map(abs, input_range))
    roundings = [sources.rounding(row, prime) for row in layout.factors(kernel)]
    off = np.stack([np.abs(off[:width]) + unsure for off, unsure in roundings]) / prime
    weights = np.abs(np.pad(kernel.T, ((0, 0), (0, width - layer.inputs)))) + off
    folds = width * sources.division + (width - 1) * sources.switching(1, layout.slots)
    variance = (sources.fresh * np.square(weights).sum(axis=1) + folds) / scale**2
    values = largest_of(*interval(layer, *(np.full(layer.inputs, float(end)) for end in input_range)))
    fixed = off[:, : layer.inputs].sum(axis=1) * largest + sources.degree / 2 / scale + 2.0**-40 * values
    return float((fixed + sources.deviations(largest * scale) * np.sqrt(variance)).max())


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)))
