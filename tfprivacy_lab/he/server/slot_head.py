"""The server of a head in slots: products and rotations, with a client's rotation keys and no secret one.

Guarantee: the server learns nothing of the features while the encryption stands.

Not covered: the weights' secrecy from the holder of the key: nothing masks what stands beside the logits.
"""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import refusing_transparent
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.plans.slot_head import SlotHead
from tfprivacy_lab.he.server.door import Door, checked_plan
from tfprivacy_lab.he.server.single_image import CkksOperations


class SlotHeadServer:
    """Evaluates a head on one encrypted sample at a time, for one client's keys.

    Args:
        plan: The head with its scale.
        keys: What the client's ``evaluation_keys`` returned.

    Raises:
        InputError: if a key that the plan uses is missing or no key of these parameters.
    """

    def __init__(self, plan: SlotHead, keys: EvaluationKeys):
        self._public = checked_plan(plan, SlotHead).public
        layout = self._public.layout
        self._door = Door(self._public, keys)
        self._operations = CkksOperations(self._public.parameters, keys, layout.steps, squares=False)
        scale, prime = math.ldexp(1.0, self._public.input_bits), float(self._public.parameters.primes[1])
        factors = layout.factors(plan.kernel)
        encoded = [self._operations.encode(row, prime, 0) for row in factors.reshape(-1, layout.slots)]
        shape = factors.shape[:-1]
        self._factors = encoded if len(shape) == 1 else _rows(encoded, shape[1])
        self._biases = [self._operations.encode(row, scale, 1) for row in layout.biases(plan.bias)]

    def evaluate(self, query: Envelope) -> Envelope:
        """The head on a query.

        Args:
            query: What the client's ``encrypt`` returned: residues uint64, shape (2, primes, N).

        Returns:
            The reply; its residues are uint64 (replies, 2, 1, N), under the first prime.

        Raises:
            InputError: if the query is something else, another plan's or client's, or damaged.
        """
        query, residues = self._door.opened(query)
        packed = self._operations.ciphertext(residues, 2.0**self._public.input_bits)
        with refusing_transparent("query"):
            replies = self._public.layout.evaluate(self._operations, packed, self._factors, self._biases)
        stacked = np.stack([self._operations.residues(reply) for reply in replies]).reshape(self._public.reply_shape)
        return self._door.answer(query, stacked)


def _rows(items: list, length: int) -> list[list]:
    """A list cut into rows of a length."""
    return [items[start : start + length] for start in range(0, len(items), length)]
