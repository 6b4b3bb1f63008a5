"""The server of the plan for one image and two squares: as :mod:`.server.single_image`, a layer longer.

Guarantee and what is not covered: as there.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import refusing_transparent
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.plans.deep_image import FACTOR_SCALE, DeepPlan
from tfprivacy_lab.he.server.door import Door, checked_plan
from tfprivacy_lab.he.server.single_image import CkksOperations


class DeepImageServer:
    """Evaluates a planned network of two squares on one encrypted image at a time, for one client's keys.

    Args:
        plan: The network with its scales.
        keys: What the client's ``evaluation_keys`` returned.

    Raises:
        InputError: if a key that the plan uses is missing or no key of these parameters.
    """

    def __init__(self, plan: DeepPlan, keys: EvaluationKeys):
        self._plan, self._public = checked_plan(plan, DeepPlan), plan.public
        self._door = Door(self._public, keys)
        self._operations = CkksOperations(self._public.parameters, keys, self._public.layout.steps)
        self._factors = self._encode()

    def evaluate(self, query: Envelope) -> Envelope:
        """The network on a query.

        Args:
            query: What the client's ``encrypt`` returned: residues uint64, shape (2, primes, N).

        Returns:
            The reply; its residues are uint64 (replies, 2, 2, N), under the first two primes.

        Raises:
            InputError: if the query is something else, another plan's or client's, or damaged.
        """
        query, residues = self._door.opened(query)
        packed = self._operations.ciphertext(residues, 2.0**self._public.input_bits)
        with refusing_transparent("query"):
            replies = self._public.layout.evaluate(self._operations, packed, self._factors)
        stacked = np.stack([self._operations.residues(reply) for reply in replies]).reshape(self._public.reply_shape)
        return self._door.answer(query, stacked)

    def _encode(self):
        """Factors and biases as plaintexts at their levels and scales."""
        layout, encode = self._public.layout, self._operations.encode
        first, second, third = self._plan.network.layers
        scales, primes = self._public.scales, self._public.parameters.primes
        return (
            self._encode_diagonals(layout.start.first_layer(first.dense_kernel()), float(primes[4]), 0),
            encode(layout.start.first_bias(first.full_bias()), scales[0], 1),
            self._encode_diagonals(layout.middle_layer(second.dense_kernel()), FACTOR_SCALE, 1),
            encode(layout.end.first_bias(second.full_bias()), scales[1], 2),
            [encode(row, FACTOR_SCALE, 2) for row in layout.end.second_layer(third.dense_kernel())],
            [encode(row, scales[1] ** 2 * FACTOR_SCALE, 2) for row in layout.end.second_bias(third.full_bias())],
        )

    def _encode_diagonals(self, factors, scale, level):
        return [[self._operations.encode(row, scale, level) for row in giant] for giant in factors]
