r"""One image in one ciphertext: where inputs and weights stand in the slots, and the rotations that meet them.

Of S slots, :math:`M = S/R` blocks of R slots, R a power of two not below the hidden width. With D a power of two,
:math:`D M \ge inputs`, slot n holds input :math:`\pi(n) = D \lfloor n/R \rfloor + (n \bmod D)`. For a row r, the slots
:math:`r + mR + d` over all blocks m and d < D show every input exactly once, because any D neighbours show every
residue modulo D and those that leave a block enter the next. So with the diagonals
:math:`u_d[n] = W[\pi(n+d), n \bmod R]`,

.. math:: \sum_{m} \Big(\sum_{d < D} u_d \odot rot(x, d)\Big)[n + mR] = (W^T x)[n \bmod R],

D products, and log2 M rotations to fold (a hybrid diagonal method after Juvekar et al. 2018, GAZELLE). The D rotations
are split into b small ones and D/b large, in Horner's form: one key for each (Halevi and Shoup 2014, baby steps and
giant steps). The result stands in every slot, period R: the second layer is then one product with
:math:`v[n] = V[n \bmod R, \lfloor n/R \rfloor]`, M outputs a ciphertext, and log2 R rotations to fold: logit c of a
ciphertext appears in slot R c.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from tfprivacy_lab.checks import InputError


@dataclasses.dataclass(frozen=True)
class Diagonals:
    """The plan of slots and rotations for inputs -> hidden -> square -> outputs.

    Args:
        slots: S, a power of two.
        inputs, hidden, outputs: Widths, each at most S.

    Raises:
        InputError: if a width is beyond the slots.
    """

    slots: int
    inputs: int
    hidden: int
    outputs: int

    def __post_init__(self):
        for name in ("inputs", "hidden"):
            if getattr(self, name) > self.slots // 2:
                raise InputError(f"Expected {name} of at most {self.slots // 2}, got {getattr(self, name)}.")

    @property
    def rows(self) -> int:
        """R: slots a block."""
        return _power_of_two(max(self.hidden, _power_of_two(-(-self.inputs * 2 // self.slots))))

    @property
    def blocks(self) -> int:
        """M: blocks, and outputs a ciphertext of the reply."""
        return self.slots // self.rows

    @property
    def diagonals(self) -> int:
        """D: products of the first layer."""
        return _power_of_two(-(-self.inputs // self.blocks))

    @property
    def baby_steps(self) -> int:
        """b: rotations are at 0..b-1, by one each; fewer than giant ones, which act under fewer primes."""
        return 1 << max(0, self.diagonals.bit_length() - 1) // 2

    @property
    def giant_steps(self) -> int:
        """D/b."""
        return self.diagonals // self.baby_steps

    @property
    def replies(self) -> int:
        """Ciphertexts of the reply."""
        return -(-self.outputs // self.blocks)

    @functools.cached_property
    def folds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The steps that fold the first layer's blocks, and the second layer's rows."""
        steps = [1 << bit for bit in range(self.slots.bit_length() - 1)]
        return tuple(s for s in steps if s >= self.rows), tuple(s for s in steps if s < self.rows)

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step that is used, for which alone keys are made."""
        used = {*self.folds[0], *self.folds[1]}
        used |= {1} if self.baby_steps > 1 else set()
        used |= {self.baby_steps} if self.giant_steps > 1 else set()
        return tuple(sorted(used))

    @property
    def rotations(self) -> int:
        """Rotations an image."""
        first = self.baby_steps - 1 + self.giant_steps - 1 + len(self.folds[0])
        return first + self.replies * len(self.folds[1])

    @property
    def products(self) -> int:
        """Products with plaintexts an image."""
        return self.diagonals + self.replies

    @functools.cached_property
    def layout(self) -> np.ndarray:
        """The input in each slot, int64 (S,), ``inputs`` where there is none."""
        n = np.arange(self.slots)
        return np.minimum(self.diagonals * (n // self.rows) + n % self.diagonals, self.inputs)

    def pack(self, image: np.ndarray) -> np.ndarray:
        """The slots of one input vector, float64 (S,)."""
        return np.append(image, 0.0)[self.layout]

    def first_layer(self, kernel: np.ndarray) -> np.ndarray:
        """The diagonals of a kernel (inputs, hidden), rolled back for Horner's form: (giant, baby, S)."""
        padded = np.zeros((self.inputs + 1, self.rows))
        padded[:-1, : self.hidden] = kernel
        rows = np.arange(self.slots) % self.rows
        result = np.empty((self.giant_steps, self.baby_steps, self.slots))
        for giant in range(self.giant_steps):
            for baby in range(self.baby_steps):
                shift = giant * self.baby_steps
                diagonal = padded[np.roll(self.layout, -(shift + baby)), rows]
                result[giant, baby] = np.roll(diagonal, shift)
        return result

    def first_bias(self, bias: np.ndarray) -> np.ndarray:
        """A hidden bias in every block, (S,)."""
        return np.tile(np.pad(bias, (0, self.rows - self.hidden)), self.blocks)

    def second_layer(self, kernel: np.ndarray) -> np.ndarray:
        """The factors of each reply, (replies, S), for kernel (hidden, outputs)."""
        padded = np.zeros((self.rows, self.replies * self.blocks))
        padded[: self.hidden, : self.outputs] = kernel
        return padded.T.reshape(self.replies, self.slots)

    def second_bias(self, bias: np.ndarray) -> np.ndarray:
        """The logits' bias where they will stand, (replies, S)."""
        result = np.zeros((self.replies * self.blocks, self.rows))
        result[: self.outputs, 0] = bias
        return result.reshape(self.replies, self.slots)

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """The outputs in the replies' slots (replies, S)."""
        return slots.reshape(-1, self.rows)[: self.outputs, 0]

    def evaluate(self, operations, packed, first, first_bias, second, second_bias) -> list:
        """The plan on any kind of vectors, so that the plain one is the encrypted one's oracle.

        Args:
            operations: ``rotate(v, step)``, ``add(v, w)``, ``multiply(v, factor)``, ``rescale(v)``,
                ``square(v)``, ``add_bias(v, bias)``.
            packed: The image's vector.
            first, first_bias, second, second_bias: Factors and biases, as the methods of the plan arrange them.

        Returns:
            A vector for each reply.
        """
        hidden = operations.add_bias(evaluate_layer(self, operations, packed, first), first_bias)
        return evaluate_last_layer(self, operations, operations.square(hidden), second, second_bias)


def evaluate_layer(plan: Diagonals, operations, packed, factors):
    """The first layer without its bias: baby steps, products, giant steps in Horner's form, and folds.

    Args:
        plan: Slots and rotations.
        operations: ``rotate``, ``add``, ``multiply`` and ``rescale`` as in :meth:`Diagonals.evaluate`.
        packed: The input's vector.
        factors: As :meth:`Diagonals.first_layer` arranges them.

    Returns:
        The vector with output r in every slot that is r modulo the plan's rows.
    """
    turned = [packed]
    for _ in range(1, plan.baby_steps):
        turned.append(operations.rotate(turned[-1], 1))
    total = None
    for giant in reversed(list(factors)):
        products = [operations.multiply(v, factor) for v, factor in zip(turned, giant, strict=True)]
        inner = operations.rescale(functools.reduce(operations.add, products))
        total = inner if total is None else operations.add(operations.rotate(total, plan.baby_steps), inner)
    for step in plan.folds[0]:
        total = operations.add(total, operations.rotate(total, step))
    return total


def evaluate_last_layer(plan: Diagonals, operations, hidden, factors, biases) -> list:
    """The last layer: a product and folds for every reply; Args: as of :meth:`Diagonals.evaluate`."""
    replies = []
    for factor, bias in zip(factors, biases, strict=True):
        reply = operations.multiply(hidden, factor)
        for step in plan.folds[1]:
            reply = operations.add(reply, operations.rotate(reply, step))
        replies.append(operations.rescale(operations.add_bias(reply, bias)))
    return replies


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()
