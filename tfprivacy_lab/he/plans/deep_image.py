r"""The plan for one image and two squares, such as a convolutional network's: CKKS with keys, by chained diagonals.

Slots and rotations are those of :mod:`.two_diagonals`. Under :math:`q_0 \ldots q_4`: the image at scale
D times diagonals at scale :math:`q_4`, rescaled; squared, at :math:`D^2`; times the second layer at scale
:math:`2^{32}`, rescaled by :math:`q_3`; squared; times the third at :math:`2^{32}`, rescaled by :math:`q_2`. The reply
is under :math:`q_0 q_1`. Bounds are those of
:mod:`.plans.single_image`, layer by layer: values by absolute weights and the largest input, noise with a
plaintext's rounding N/2 at every slot that is added up, those without a weight included.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.packing.two_diagonals import DeepLayout
from tfprivacy_lab.he.plans.layers import Network, check_input_range
from tfprivacy_lab.he.plans.likely_error import Sources, first_layer, last_layer, middle_layer
from tfprivacy_lab.he.plans.single_image import MAX_INPUT_BITS
from tfprivacy_lab.he.plans.slots import Factor, PublicSlotPlan
from tfprivacy_lab.he.ring.network_parameters import DEEP, NetworkParameters

FACTOR_SCALE = 2.0**32
MIN_INPUT_BITS = 24


@dataclasses.dataclass(frozen=True)
class PublicDeepPlan(PublicSlotPlan):
    """What client and server both know: everything but the weights. Attributes as of ``PublicSinglePlan``."""

    parameters: NetworkParameters
    layout: DeepLayout
    input_range: tuple[float, float]
    input_bits: int
    error_bound: float

    levels, relinearises = 3, True

    @property
    def scales(self) -> tuple[float, float, float]:
        """Of the first layer's values, the second's, and the logits."""
        primes, first = self.parameters.primes, math.ldexp(1.0, self.input_bits)
        second = first * first * FACTOR_SCALE / primes[3]
        return first, second, second * second * FACTOR_SCALE / primes[2]

    @property
    def output_scale(self) -> float:
        """A logit of 1 is decrypted as this."""
        return self.scales[2]


@dataclasses.dataclass(frozen=True, eq=False)
class DeepPlan:
    """Float layers with scales at which nothing can overflow.

    Guarantee: logits decrypt within ``public.error_bound`` of the float network for all inputs in range, but for a
        probability of 2**-58 over the keys and the encryption.
    """

    network: Network
    public: PublicDeepPlan

    @classmethod
    def make(cls, network: Network, input_range=(0.0, 1.0)) -> DeepPlan:
        """The plan with the finest input scale that the limits allow.

        Args:
            network: Three layers, a square between each two; any may be convolutional.
            input_range: Lowest and highest value of any input, finite.

        Raises:
            InputError: if there are not two squares, or widths or magnitudes are beyond the parameters.
        """
        low, high = check_input_range(input_range)
        if network.squares != 2:
            raise InputError(f"Expected a network of two squares, got {network.squares}; use SinglePlan for one.")
        first, second, _ = network.layers
        slots = DEEP.poly_modulus_degree // 2
        layout = DeepLayout(slots, network.inputs, first.outputs, second.outputs, network.outputs)
        for input_bits in range(MAX_INPUT_BITS, MIN_INPUT_BITS - 1, -1):
            public = PublicDeepPlan(DEEP, layout, (low, high), input_bits, math.inf)
            load, error = Bounds(network, public, max(abs(low), abs(high))).proved()
            second, third = (scale**2 * FACTOR_SCALE for scale in public.scales[:2])
            if load <= 1 and DEEP.holds_scale(second, 4) and DEEP.holds_scale(third, 3):
                return cls(network, dataclasses.replace(public, error_bound=error))
        raise InputError(
            f"The network could overflow: inputs within {low:g}..{high:g} can grow beyond the "
            f"{DEEP.modulus.bit_length()} bits of ckks; rescale its layers or narrow input_range."
        )

    def factors(self) -> Iterator[Factor]:
        """Weights and biases, as the layout's ``evaluate`` takes them."""
        layout, (first, second, third) = self.public.layout, self.network.layers
        scales = self.public.scales
        yield Factor(layout.start.first_layer(first.dense_kernel()), float(self.public.parameters.primes[4]), 0)
        yield Factor(layout.start.first_bias(first.full_bias()), scales[0], 1)
        yield Factor(layout.middle_layer(second.dense_kernel()), FACTOR_SCALE, 1)
        yield Factor(layout.end.first_bias(second.full_bias()), scales[1], 2)
        yield Factor(layout.end.second_layer(third.dense_kernel()), FACTOR_SCALE, 2)
        yield Factor(layout.end.second_bias(third.full_bias()), scales[1] ** 2 * FACTOR_SCALE, 2)

    def likely_error_bound(self) -> float:
        """As :meth:`.SinglePlan.likely_error_bound`."""
        public, (first, second, third) = self.public, self.network.layers
        sources, layout, scales = Sources(public.parameters), public.layout, public.scales
        prime = public.parameters.primes[4]
        values = first_layer(sources, layout.start, first, public.input_range, scales[0], prime, 5)
        values = middle_layer(sources, layout, values, second, scales, FACTOR_SCALE, 4)
        return min(public.error_bound, last_layer(sources, layout.end, values, third, scales[1], FACTOR_SCALE, 3))


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """The proof for one network and scale (module docstring)."""

    network: Network
    public: PublicDeepPlan
    largest: float

    @functools.cached_property
    def half(self) -> float:
        """N/2, a plaintext's rounding."""
        return self.public.parameters.poly_modulus_degree / 2

    @functools.cached_property
    def division(self) -> float:
        """rho."""
        return self.half * (1 + self.public.parameters.key_root_bound())

    def switching(self, primes: int) -> float:
        """kappa under so many primes."""
        pinned = self.public.parameters
        digits = sum(pinned.primes[:primes]) / pinned.special_prime
        return 2 * self.half * digits * pinned.error_root_bound() + self.division

    def proved(self) -> tuple[float, float]:
        """The fullest limit's fraction, and the bound on a logit's error."""
        layout, primes = self.public.layout, self.public.parameters.primes
        scales, kernels = self.public.scales, [np.abs(layer.dense_kernel()) for layer in self.network.layers]
        biases = [np.abs(layer.full_bias()) for layer in self.network.layers]
        values, noise, load = self._first(kernels[0], biases[0], scales[0])
        loads = [load]
        # Two squares, each with its layer: the slots beyond a layer's width hold noise alone.
        for number, rows, blocks in (
            (1, layout.start.rows, layout.slots // layout.start.rows),
            (2, layout.end.rows, 1),
        ):
            left, spare = 5 - number, rows - len(values)
            squares = np.square(values)
            square_noise = 2 * values * noise + np.square(noise) + self.switching(left)
            loads.append(self._load(squares + square_noise, left))
            empty = spare * (noise.max() ** 2 + self.switching(left))
            extra = (layout.baby_steps - 1) * self.switching(left) if number == 1 else 0.0
            rounded = self.half * blocks * (squares.sum() + square_noise.sum() + empty + rows * extra)
            product = kernels[number].T @ squares * FACTOR_SCALE
            product_noise = FACTOR_SCALE * (kernels[number].T @ (square_noise + extra)) + rounded
            offset = biases[number] * scales[number]
            if number == 2:
                product = product + offset * primes[2]
                product_noise += rows * self.switching(left) + self.half
            loads.append(self._load(product + product_noise, left))
            values = product / primes[left - 1] + (offset if number == 1 else 0.0)
            noise = product_noise / primes[left - 1] + self.division
            if number == 1:
                turns = (layout.slots // layout.end.rows) * (layout.giant_steps + 1)
                noise = noise + turns * (self.division + self.switching(left - 1)) + self.half
            loads.append(self._load(values + noise, left - 1))
        return float(max(loads)), float((noise + values * 2.0**-40).max() / scales[2])

    def _first(self, kernel, bias, scale):
        """Values and noise after the first layer, and how full it is before."""
        plan, primes, columns = self.public.layout.start, self.public.parameters.primes, kernel.sum(axis=0)
        fresh = self.public.parameters.slot_noise_bound() * math.sqrt(2) + self.half
        fresh += (plan.baby_steps - 1) * self.switching(5)
        entries, top = plan.blocks * plan.diagonals, self.largest * scale
        sums = (primes[4] * columns + entries * self.half) * fresh + self.half * entries * top
        load = self._load((columns * primes[4] + entries * self.half) * top + sums, 5)
        turns = plan.blocks * (plan.giant_steps + 1) * (self.division + self.switching(4))
        return columns * top + bias * scale, sums / primes[4] + turns + self.half, load

    def _load(self, magnitudes, primes: int) -> float:
        """The fraction of half the modulus that is used, with what float64 may lose."""
        return float(magnitudes.max() * 2 / math.prod(self.public.parameters.primes[:primes]) * (1 + 2.0**-20))
