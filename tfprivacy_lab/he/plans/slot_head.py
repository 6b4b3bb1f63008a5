r"""A dense head on features in slots, as textbooks have it: what coefficient packing is held against.

*Naive rows*: for every class a product with its row of weights, and rotations by powers of two that add up the slots; a
ciphertext a class. *Diagonal*: the layer of :mod:`.diagonal`, baby steps and giant steps, from slots
to slots: one ciphertext holds all logits, where a next layer can go on. Both are CKKS under :math:`q_0 q_1` and need
keys, for the steps that they use and no other.

**Errors** are those of :mod:`.plans.single_image`, for one product at the scale :math:`q_1` that is rescaled
away: with e the noise of a slot before it, N/2 for a plaintext's rounding, :math:`\rho` for a division and
:math:`\kappa` for a rotation's key switching, a sum of n slots is off by at most

.. math:: \big((q_1 \|w\|_1 + n \tfrac N2)\, e + n \tfrac N2 D |x|\big) / q_1 + n (\rho + \kappa) + \tfrac N2

in units of :math:`1/D`; values and noise stay below half the primes left.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.packing.diagonal import Diagonals, evaluate_layer
from tfprivacy_lab.he.plans.layers import Affine, check_input_range
from tfprivacy_lab.he.plans.likely_error import Sources, head_in_blocks, head_in_rows
from tfprivacy_lab.he.plans.slots import Factor, PublicSlotPlan
from tfprivacy_lab.he.quantization.heads import check_head
from tfprivacy_lab.he.ring.network_parameters import SLOTS, NetworkParameters

MAX_INPUT_BITS, MIN_INPUT_BITS = 46, 20


@dataclasses.dataclass(frozen=True)
class NaiveRows:
    """A product and a fold a class.

    Args:
        slots: S, a power of two.
        inputs, outputs: d and c of the head.
    """

    slots: int
    inputs: int
    outputs: int

    @property
    def width(self) -> int:
        """Slots that are added up: a power of two, not below the inputs."""
        return 1 << (self.inputs - 1).bit_length()

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step that is used."""
        return tuple(1 << bit for bit in range(self.width.bit_length() - 1))

    @property
    def products(self) -> int:
        """Products with plaintexts a sample."""
        return self.outputs

    @property
    def rotations(self) -> int:
        """Rotations a sample."""
        return self.outputs * len(self.steps)

    @property
    def replies(self) -> int:
        """Ciphertexts of a reply."""
        return self.outputs

    def pack(self, values: np.ndarray) -> np.ndarray:
        """The features in the first slots, (S,)."""
        return np.pad(values, (0, self.slots - self.inputs))

    def factors(self, kernel: np.ndarray) -> np.ndarray:
        """A row of weights a class, (outputs, S)."""
        return np.pad(kernel.T, ((0, 0), (0, self.slots - self.inputs)))

    def biases(self, bias: np.ndarray) -> np.ndarray:
        """The bias where its logit will stand, (replies, S)."""
        return np.pad(bias[:, np.newaxis], ((0, 0), (0, self.slots - 1)))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """The outputs in the replies' slots (replies, S)."""
        return slots[:, 0]

    def evaluate(self, operations, packed, factors, biases) -> list:
        """A vector a class, on any kind of vectors (:meth:`.Diagonals.evaluate`)."""
        replies = []
        for factor, bias in zip(factors, biases, strict=True):
            total = operations.rescale(operations.multiply(packed, factor))
            for step in self.steps:
                total = operations.add(total, operations.rotate(total, step))
            replies.append(operations.add_bias(total, bias))
        return replies

    def noise(self, columns, fresh, largest, ring: Ring) -> np.ndarray:
        """The module docstring's bound, by class: ``columns`` are the L1 norms, ``largest`` is D|x|."""
        return ring.summed(columns, self.width, fresh, largest) + self.width * (ring.division + ring.switching(1))


class DiagonalRows(Diagonals):
    """The first layer of :class:`~tfprivacy_lab.he.packing.diagonal.Diagonals` alone: outputs are its hidden values."""

    def __init__(self, slots: int, inputs: int, outputs: int):
        super().__init__(slots, inputs, outputs, 1)

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step that is used."""
        used = {*self.folds[0]} | ({1} if self.baby_steps > 1 else set())
        return tuple(sorted(used | ({self.baby_steps} if self.giant_steps > 1 else set())))

    @property
    def products(self) -> int:
        """Products with plaintexts a sample."""
        return self.diagonals

    @property
    def rotations(self) -> int:
        """Rotations a sample."""
        return self.baby_steps - 1 + self.giant_steps - 1 + len(self.folds[0])

    @property
    def replies(self) -> int:
        """Ciphertexts of a reply."""
        return 1

    def factors(self, kernel: np.ndarray) -> np.ndarray:
        """The diagonals, (giant, baby, S)."""
        return self.first_layer(kernel)

    def biases(self, bias: np.ndarray) -> np.ndarray:
        """The bias in every block, (1, S)."""
        return self.first_bias(bias)[np.newaxis]

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """The outputs in the reply's slots (1, S)."""
        return slots[0, : self.hidden]

    def evaluate(self, operations, packed, factors, biases) -> list:
        """One vector of all classes, on any kind of vectors (:meth:`.Diagonals.evaluate`)."""
        return [operations.add_bias(evaluate_layer(self, operations, packed, factors), biases[0])]

    def noise(self, columns, fresh, largest, ring: Ring) -> np.ndarray:
        """The module docstring's bound, by class: ``columns`` are the L1 norms, ``largest`` is D|x|."""
        entries, fresh = self.blocks * self.diagonals, fresh + (self.baby_steps - 1) * ring.switching(2)
        turns = self.blocks * (self.giant_steps + 1) * (ring.division + ring.switching(1))
        return ring.summed(columns, entries, fresh, largest) + turns


LAYOUTS = {"naive": NaiveRows, "diagonal": DiagonalRows}


@dataclasses.dataclass(frozen=True)
class Ring:
    """The roundings and errors of one ring, by slot (module docstring)."""

    parameters: NetworkParameters

    @property
    def half(self) -> float:
        """N/2, a plaintext's rounding."""
        return self.parameters.poly_modulus_degree / 2

    @functools.cached_property
    def division(self) -> float:
        """rho."""
        return self.half * (1 + self.parameters.key_root_bound())

    def switching(self, primes: int) -> float:
        """kappa under so many primes."""
        digits = sum(self.parameters.primes[:primes])
        return (
            2 * self.half * digits * self.parameters.error_root_bound() / self.parameters.special_prime + self.division
        )

    def summed(self, columns, entries: int, fresh: float, largest: float):
        """Noise of a sum of products, after rescaling, and of the bias's rounding."""
        scale = self.parameters.primes[1]
        product = (scale * columns + entries * self.half) * fresh + entries * self.half * largest
        return product / scale + self.half


@dataclasses.dataclass(frozen=True)
class PublicSlotHead(PublicSlotPlan):
    """What client and server both know: everything but the weights.

    Attributes:
        parameters: The ring and its primes.
        layout: Slots, rotations and key steps; it holds widths only.
        input_range: Lowest and highest feature allowed.
        input_bits: log2 of the features' scale D.
        error_bound: Bound on any logit's error, over all features in range.
    """

    parameters: NetworkParameters
    layout: NaiveRows | DiagonalRows
    input_range: tuple[float, float]
    input_bits: int
    error_bound: float

    levels, relinearises = 1, False

    @property
    def output_scale(self) -> float:
        """A logit of 1 is decrypted as this."""
        return math.ldexp(1.0, self.input_bits)

    def summary(self) -> dict:
        """Operations, keys, bytes and the error bound, as numbers and strings."""
        return {
            "scheme": "ckks",
            "poly_modulus_degree": self.parameters.poly_modulus_degree,
            "coeff_modulus_bits": self.parameters.coeff_modulus_bits,
            "products": self.layout.products,
            "rotations": self.layout.rotations,
            **self._costs(),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class SlotHead:
    """A float head with a scale at which nothing can overflow.

    Guarantee: logits decrypt within ``public.error_bound`` of the float head for all features in range, but for a
        probability of 2**-58 over the keys and the encryption.
    """

    kernel: np.ndarray
    bias: np.ndarray
    public: PublicSlotHead

    @classmethod
    def make(cls, kernel, bias=None, packing: str = "diagonal", input_range=(-1.0, 1.0)) -> SlotHead:
        """The plan with the finest scale of features that the limits allow.

        Args:
            kernel: Finite, shape (d, c), d <= 2048, c <= 1000.
            bias: Finite, shape (c,), or None.
            packing: "naive" or "diagonal".
            input_range: Lowest and highest value of any feature, finite.

        Raises:
            InputError: naming the argument, or if the magnitudes are beyond the parameters.
        """
        kernel, bias = check_head(kernel, bias)
        layout = LAYOUTS[check_choice("packing", packing, LAYOUTS)](SLOTS.poly_modulus_degree // 2, *kernel.shape)
        low, high = check_input_range(input_range)
        for input_bits in range(MAX_INPUT_BITS, MIN_INPUT_BITS - 1, -1):
            load, error = bounds(kernel, bias, layout, max(abs(low), abs(high)), input_bits)
            if load <= 1 and SLOTS.holds_scale(math.ldexp(float(SLOTS.primes[1]), input_bits), 2):
                return cls(kernel, bias, PublicSlotHead(SLOTS, layout, (low, high), input_bits, error))
        raise InputError(
            f"The head could overflow: features within {low:g}..{high:g} can grow beyond the "
            f"{SLOTS.primes[0].bit_length()} bits that are left of ckks; rescale the head or narrow input_range."
        )

    def factors(self) -> Iterator[Factor]:
        """Weights and biases, as the layout's ``evaluate`` takes them."""
        public, layout = self.public, self.public.layout
        yield Factor(layout.factors(self.kernel), float(public.parameters.primes[1]), 0)
        yield Factor(layout.biases(self.bias), public.output_scale, 1)

    def likely_error_bound(self) -> float:
        """Bound on any logit's error for features in range, but for a probability of 2**-56 under assumption U.

        Of :mod:`~tfprivacy_lab.he.plans.likely_error`, where the assumption is; never above the worst case.
        """
        public, head = (
            self.public,
            Affine(self.kernel, self.bias, np.arange(len(self.kernel))[np.newaxis], len(self.kernel)),
        )
        bound = head_in_rows if isinstance(public.layout, NaiveRows) else head_in_blocks
        arguments = head, public.input_range, public.output_scale, public.parameters.primes[1]
        return min(public.error_bound, bound(Sources(public.parameters), public.layout, *arguments))


def bounds(kernel, bias, layout, largest: float, input_bits: int) -> tuple[float, float]:
    """The fullest limit's fraction, and the bound on a logit's error (module docstring)."""
    ring, scale, (q0, q1) = Ring(SLOTS), math.ldexp(1.0, input_bits), SLOTS.primes
    columns = np.abs(kernel).sum(axis=0)
    fresh = SLOTS.slot_noise_bound() * math.sqrt(2) + ring.half
    noise = layout.noise(columns, fresh, largest * scale, ring)
    values = (columns * largest + np.abs(bias)) * scale
    load = ((values + noise).max() * 2 / q0) * (1 + 2.0**-20)
    # Before the rescaling values and noise are q1 times as large, and so is the modulus.
    load = max(load, float(((columns * largest * scale + noise) * q1).max() * 2 / (q0 * q1)))
    return float(load), float((noise + values * 2.0**-40).max() / scale)
