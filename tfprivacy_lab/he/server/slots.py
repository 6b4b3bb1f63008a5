"""The servers of what is packed into the slots of one ciphertext: a head, or a network of one square or of two."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import refusing_transparent
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.plans.deep_image import DeepPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.plans.slot_head import SlotHead
from tfprivacy_lab.he.server.ckks_operations import CkksOperations
from tfprivacy_lab.he.server.door import Door, checked_plan


class SlotServer:
    """Evaluates a plan on one encrypted sample at a time, for one client's keys.

    Args:
        plan: The weights with their scales, of the kind that the server is for.
        keys: What the client's ``evaluation_keys`` returned.

    Raises:
        InputError: if a key that the plan uses is missing or no key of these parameters.

    Guarantee: the server learns nothing of the sample while the encryption stands.

    Not covered: the weights' secrecy from the holder of the key (slots beside the logits hold partial sums of weights
        and squared hidden values, and nothing masks them); a server that uses another head or network.
    """

    _kind: ClassVar[type]

    def __init__(self, plan, keys: EvaluationKeys):
        self._public = checked_plan(plan, self._kind).public
        self._door = Door(self._public, keys)
        steps, squares = self._public.layout.steps, self._public.relinearises
        self._operations = CkksOperations(self._public.parameters, keys, steps, squares)
        self._factors = [self._encoded(*factor) for factor in plan.factors()]

    def evaluate(self, query: Envelope) -> Envelope:
        """The head or network on a query.

        Args:
            query: What the client's ``encrypt`` returned: residues uint64, shape (2, primes, N).

        Returns:
            The reply; its residues are uint64, of the plan's ``reply_shape``: (replies, 2, primes left, N).

        Raises:
            InputError: if the query is something else, another plan's or client's, or damaged.
        """
        query, residues = self._door.opened(query)
        packed = self._operations.ciphertext(residues, 2.0**self._public.input_bits)
        with refusing_transparent("query"):
            replies = self._public.layout.evaluate(self._operations, packed, *self._factors)
        stacked = np.stack([self._operations.residues(reply) for reply in replies]).reshape(self._public.reply_shape)
        return self._door.answer(query, stacked)

    def _encoded(self, slots: np.ndarray, scale: float, level: int):
        """A plaintext of slots (S,), or lists of them, nested as the axes before."""
        if slots.ndim == 1:
            return self._operations.encode(slots, scale, level)
        return [self._encoded(part, scale, level) for part in slots]


class SingleImageServer(SlotServer):
    """The server of a network of one square (:mod:`tfprivacy_lab.he.plans.single_image`)."""

    _kind = SinglePlan


class DeepImageServer(SlotServer):
    """The server of a network of two squares (:mod:`tfprivacy_lab.he.plans.deep_image`)."""

    _kind = DeepPlan


class SlotHeadServer(SlotServer):
    """The server of a head (:mod:`tfprivacy_lab.he.plans.slot_head`)."""

    _kind = SlotHead
