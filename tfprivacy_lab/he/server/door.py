"""What a server of one client's samples lets in and out: queries of that client and plan, and replies to them."""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages import envelopes
from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import check_residues
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys, checked_keys


def checked_plan(plan, kind: type):
    """The plan, if it is one of this kind.

    Raises:
        InputError: with what it is.
    """
    if not isinstance(plan, kind):
        raise InputError(
            f"Expected plan as {kind.__name__}, got {type(plan).__name__}; make one with {kind.__name__}.make."
        )
    return plan


class Door:
    """Holds queries against a plan and the client whose evaluation keys are there.

    Args:
        public: The plan, of one sample a query.
        keys: The client's.

    Raises:
        InputError: if the keys are for another plan, or damaged.
    """

    def __init__(self, public, keys: EvaluationKeys):
        self._public, self._digest, self._key_id = public, envelopes.plan_digest(public), checked_keys(keys).key_id
        keys.check(self._digest)

    def opened(self, query) -> tuple[Envelope, np.ndarray]:
        """A query and its residues, uint64 (2, primes, N).

        Raises:
            InputError: if it is something else, another plan's or client's, or damaged.
        """
        query, shape = envelopes.opened(query, "query", self._digest, self._key_id), self._public.query_shape
        if query.samples != 1 or query.residues.size != math.prod(shape):
            raise InputError(
                f"Expected a query of one sample and shape {shape}, got {query.samples} of shape {query.shape}."
            )
        residues = query.residues.reshape(1, 1, *shape)
        check_residues("query", residues, self._public.parameters, residues.shape, fresh=True)
        return query, residues[0, 0]

    def answer(self, query: Envelope, residues: np.ndarray) -> Envelope:
        """The reply to a query."""
        return Envelope.sealed("reply", self._digest, query.key_id, query.query_id, 1, residues)
