"""What is taken of dp-accounting beyond its public interface, and nowhere else in the package.

A ``PrivacyLossDistribution`` gives δ(ε), but not the masses that it is made of, which a sum with other losses on our
own grid needs. They are read from ``PrivacyLossDistribution._pmf_remove`` and ``._pmf_add`` (which may be one object),
and from ``_probs``, ``_lower_loss``, ``_discretization`` and ``_infinity_mass`` of each made dense.

``tests/dp/accounting/test_dp_accounting_internals.py`` names the versions of dp-accounting that this is for, and fails
where one moves.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution


@dataclasses.dataclass(frozen=True, eq=False)
class Masses:
    """One direction of a privacy loss distribution.

    Attributes:
        masses: Probabilities, at the losses lowest · interval, (lowest + 1) · interval, …
        lowest: A whole number.
        interval: Of the grid of losses, > 0.
        infinity_mass: Probability of an infinite loss.
    """

    masses: np.ndarray
    lowest: int
    interval: float
    infinity_mass: float


def masses_of(distribution: PrivacyLossDistribution) -> tuple[Masses, ...]:
    """Both directions, a record removed and one added; one, where they are the same object."""
    dense = (pmf.to_dense_pmf() for pmf in dict.fromkeys((distribution._pmf_remove, distribution._pmf_add)))
    return tuple(
        Masses(np.asarray(one._probs), one._lower_loss, one._discretization, one._infinity_mass) for one in dense
    )
