r"""The plan for one image, CKKS with keys: scales, levels, and the proof that nothing overflows.

Under :math:`q_0 q_1 q_2`: the image at scale D times diagonals at scale :math:`q_2`; rescaled by :math:`q_2`; folded,
squared and relinearised under :math:`q_0 q_1`, at scale :math:`D^2`; times the second layer at scale
:math:`2^{24}`, folded, rescaled by :math:`q_1`. Slots, in absolute value and units of what is encoded:

* a plaintext rounds by at most N/2, a division (rescaling, encryption's, key switching's) by
  :math:`\rho = \tfrac N2 (1 + |s(\zeta)|)`;
* key switching adds :math:`\kappa = N \sum_i q_i\, |e(\zeta)| / p + \rho` (digits below :math:`q_i`, errors of
  the key);
* sums add, products with a factor w at scale S take noise e on a value m to :math:`(S|w| + N/2)\, e + \tfrac N2 |m|`,
  a square to :math:`2 m e + e^2`.

:math:`|s(\zeta)|` and :math:`|e(\zeta)|` are bounded for all roots and all key parts together with probability
:math:`1 - 2^{-59}`, everything else follows without chance but the fresh noise of encryption (2**-64). Values are
bounded by absolute weights times the largest input, so partial sums are too. At every level values and noise stay
below half the primes then left: coefficients are at most the largest slot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.packing.diagonal import Diagonals
from tfprivacy_lab.he.plans.layers import Network, check_input_range
from tfprivacy_lab.he.plans.likely_error import Sources, first_layer, last_layer
from tfprivacy_lab.he.plans.slots import Factor, PublicSlotPlan
from tfprivacy_lab.he.ring.network_parameters import SINGLE, NetworkParameters

SECOND_SCALE = 2.0**24
MAX_INPUT_BITS = 46
MIN_INPUT_BITS = 28


@dataclasses.dataclass(frozen=True)
class PublicSinglePlan(PublicSlotPlan):
    """What client and server both know of a single-image plan: everything but the weights.

    Attributes:
        parameters: The ring and its primes.
        diagonals: Slots, rotations and key steps; it holds widths only.
        input_range: Lowest and highest input allowed.
        input_bits: log2 of the image's scale D.
        error_bound: Bound on any logit's error, over all inputs in range.
    """

    parameters: NetworkParameters
    diagonals: Diagonals
    input_range: tuple[float, float]
    input_bits: int
    error_bound: float

    levels, relinearises = 2, True

    @property
    def layout(self) -> Diagonals:
        """Slots and steps, as the client asks for them."""
        return self.diagonals

    @property
    def output_scale(self) -> float:
        """A logit of 1 is decrypted as this."""
        return 4.0**self.input_bits * SECOND_SCALE / self.parameters.primes[1]


@dataclasses.dataclass(frozen=True, eq=False)
class SinglePlan:
    """Float layers with scales at which nothing can overflow.

    Guarantee: logits decrypt within ``public.error_bound`` of the float network for all inputs in range, but for a
        probability of 2**-58 over the keys and the encryption.
    """

    network: Network
    public: PublicSinglePlan

    @classmethod
    def make(cls, network: Network, input_range=(0.0, 1.0)) -> SinglePlan:
        """The plan with the finest input scale that the limits allow.

        Args:
            network: Two layers, a square between; the first may be convolutional.
            input_range: Lowest and highest value of any input, finite.

        Raises:
            InputError: if there are more squares, or widths or magnitudes are beyond the parameters.
        """
        low, high = check_input_range(input_range)
        if network.squares != 1:
            raise InputError(
                f"Expected a network of one square for a single image, got {network.squares}; use a batch."
            )
        slots = SINGLE.poly_modulus_degree // 2
        diagonals = Diagonals(slots, network.inputs, network.layers[0].outputs, network.outputs)
        for input_bits in range(MAX_INPUT_BITS, MIN_INPUT_BITS - 1, -1):
            load, error = bounds(network, diagonals, max(abs(low), abs(high)), input_bits)
            if load <= 1 and SINGLE.holds_scale(4.0**input_bits * SECOND_SCALE, 2):
                return cls(network, PublicSinglePlan(SINGLE, diagonals, (low, high), input_bits, error))
        raise InputError(
            f"The network could overflow: inputs within {low:g}..{high:g} can grow beyond the "
            f"{SINGLE.modulus.bit_length()} bits of ckks; rescale its layers or narrow input_range."
        )

    def factors(self) -> Iterator[Factor]:
        """Weights and biases, as the layout's ``evaluate`` takes them."""
        diagonals, (first, second) = self.public.diagonals, self.network.layers
        scale = 2.0**self.public.input_bits
        yield Factor(diagonals.first_layer(first.dense_kernel()), float(self.public.parameters.primes[2]), 0)
        yield Factor(diagonals.first_bias(first.full_bias()), scale, 1)
        yield Factor(diagonals.second_layer(second.dense_kernel()), SECOND_SCALE, 1)
        yield Factor(diagonals.second_bias(second.full_bias()), scale**2 * SECOND_SCALE, 1)

    def likely_error_bound(self) -> float:
        """Bound on any logit's error for an image in range, but for a probability of 2**-56 under assumption U.

        Of :mod:`~tfprivacy_lab.he.plans.likely_error`, where the assumption is; never above the worst case.
        """
        public, (first, second) = self.public, self.network.layers
        sources, scale = Sources(public.parameters), math.ldexp(1.0, public.input_bits)
        prime = public.parameters.primes[2]
        before = first_layer(sources, public.diagonals, first, public.input_range, scale, prime, 3)
        return min(public.error_bound, last_layer(sources, public.diagonals, before, second, scale, SECOND_SCALE, 2))


def bounds(network: Network, plan: Diagonals, largest: float, input_bits: int) -> tuple[float, float]:
    """The fullest limit's fraction, and the bound on a logit's error (module docstring)."""
    q0, q1, q2 = SINGLE.primes
    half, scale = SINGLE.poly_modulus_degree / 2, math.ldexp(1.0, input_bits)
    division = half * (1 + SINGLE.key_root_bound())

    def switching(*primes):
        return 2 * half * sum(primes) * SINGLE.error_root_bound() / SINGLE.special_prime + division

    first, second = (np.abs(layer.dense_kernel()) for layer in network.layers)
    columns = first.sum(axis=0)
    fresh = SINGLE.slot_noise_bound() * math.sqrt(2) + half + (plan.baby_steps - 1) * switching(q0, q1, q2)
    entries = plan.blocks * plan.diagonals
    sums = (q2 * columns + entries * half) * fresh + half * entries * largest * scale
    turns = plan.blocks * (plan.giant_steps * division + plan.giant_steps * switching(q0, q1))
    noise = sums / q2 + turns + plan.blocks * switching(q0, q1) + half
    hidden = (columns * largest + np.abs(network.layers[0].full_bias())) * scale
    top = ((columns * q2 + entries * half) * largest * scale + sums).max() * 2 / (q0 * q1 * q2)
    square = np.square(hidden)
    square_noise = 2 * hidden * noise + np.square(noise) + switching(q0, q1)
    factors = second * SECOND_SCALE + half
    outputs = second.T @ square * SECOND_SCALE + np.abs(network.layers[1].full_bias()) * scale**2 * SECOND_SCALE
    # Slots beyond the hidden width hold noise alone, and their factors the encoder's rounding.
    spare = (plan.rows - plan.hidden) * half * ((noise.max()) ** 2 + switching(q0, q1))
    output_noise = factors.T @ square_noise + half * square.sum() + spare + plan.rows * switching(q0, q1) + half
    middle = (square + square_noise).max() * 2 / (q0 * q1)
    end = (outputs + output_noise).max() * 2 / (q0 * q1)
    error = (output_noise + q1 * division + outputs * 2.0**-40).max() / (scale**2 * SECOND_SCALE)
    return float(max(top, middle, end * (1 + 2.0**-20))), float(error)
