r"""Three layers in the slots of one ciphertext: where weights stand, and the rotations that meet them.

The first layer is that of :mod:`.diagonal`: its outputs stand in all slots, period R. The second
takes them to a shorter period R': with diagonals :math:`u_d[n] = W[(n + d) \bmod R, n \bmod R']` in the first R slots
and zero in the others, d < R', in baby and giant steps, slots :math:`r + m R'` show output r every input once, and
rotations by R', 2 R', ... add them up into all slots. The last layer is one product and rotations again.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.packing.diagonal import Diagonals, evaluate_last_layer, evaluate_layer


class DeepLayout:
    """Slots and rotations of three layers.

    Args:
        slots: S, a power of two.
        inputs, first, second, outputs: Widths; the second not above the first.

    Raises:
        InputError: if a width is beyond the slots or grows.
    """

    def __init__(self, slots: int, inputs: int, first: int, second: int, outputs: int):
        self.inputs, self.outputs = inputs, outputs
        self.start = Diagonals(slots, inputs, first, 1)
        self.end = Diagonals(slots, self.start.rows, second, outputs)
        if self.end.rows > self.start.rows:
            raise InputError(f"Expected a second layer no wider than the first, {first}, got {second}.")
        self.slots, self.second = slots, second

    @property
    def replies(self) -> int:
        """Ciphertexts of the reply."""
        return self.end.replies

    @property
    def middle_folds(self) -> tuple[int, ...]:
        """The steps that add up the second layer's blocks."""
        return tuple(1 << bit for bit in range(self.end.rows.bit_length() - 1, self.slots.bit_length() - 1))

    @property
    def baby_steps(self) -> int:
        """b of the second layer, of R' diagonals."""
        return 1 << max(0, self.end.rows.bit_length() - 1) // 2

    @property
    def giant_steps(self) -> int:
        """R'/b."""
        return self.end.rows // self.baby_steps

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step that is used, for which alone keys are made."""
        used = {*self.start.folds[0], *self.middle_folds, *self.end.folds[1]}
        for layer in (self.start, self):
            used |= ({1} if layer.baby_steps > 1 else set()) | ({layer.baby_steps} if layer.giant_steps > 1 else set())
        return tuple(sorted(used))

    @property
    def rotations(self) -> int:
        """Rotations an image."""
        turns = sum(layer.baby_steps - 1 + layer.giant_steps - 1 for layer in (self.start, self))
        return turns + len(self.start.folds[0]) + len(self.middle_folds) + self.replies * len(self.end.folds[1])

    @property
    def products(self) -> int:
        """Products with plaintexts an image."""
        return self.start.diagonals + self.end.rows + self.replies

    def pack(self, image: np.ndarray) -> np.ndarray:
        """The slots of one input vector, float64 (S,)."""
        return self.start.pack(image)

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """The outputs in the replies' slots (replies, S)."""
        return self.end.logits(slots)

    def middle_layer(self, kernel: np.ndarray) -> np.ndarray:
        """The second layer's diagonals, rolled back for Horner's form: (giant, baby, S)."""
        rows, shorter = self.start.rows, self.end.rows
        padded = np.zeros((rows, shorter))
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        n = np.arange(rows)
        result = np.zeros((self.giant_steps, self.baby_steps, self.slots))
        for giant in range(self.giant_steps):
            shift = giant * self.baby_steps
            for baby in range(self.baby_steps):
                result[giant, baby, :rows] = padded[(n + shift + baby) % rows, n % shorter]
                result[giant, baby] = np.roll(result[giant, baby], shift)
        return result

    def evaluate(self, operations, packed, first, first_bias, second, second_bias, third, third_bias) -> list:
        """The network on any kind of vectors (:meth:`.Diagonals.evaluate`)."""
        hidden = operations.add_bias(evaluate_layer(self.start, operations, packed, first), first_bias)
        middle = _Middle(self.baby_steps, (self.middle_folds,))
        hidden = evaluate_layer(middle, operations, operations.square(hidden), second)
        hidden = operations.square(operations.add_bias(hidden, second_bias))
        return evaluate_last_layer(self.end, operations, hidden, third, third_bias)


@dataclasses.dataclass(frozen=True)
class _Middle:
    """What :func:`evaluate_layer` asks of a layer."""

    baby_steps: int
    folds: tuple
