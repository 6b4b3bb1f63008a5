"""For which neighbours an event's cost holds: one record added or removed, or one record zeroed.

dp_accounting's events do not say. Here an event by itself holds for add-or-remove-one, and one that holds for
zero-out alone stands in :class:`ZeroOutOneDpEvent`, which no accountant prices unless it is taken out by name.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import dp_accounting

from tfprivacy_lab.checks import InputError

ADD_OR_REMOVE_ONE = "add_or_remove_one"
ZERO_OUT = "zero_out"
# What logs of events that were written before say, and callers still may.
_FORMER_NAMES = {"zero_out_one": ZERO_OUT}


@dataclasses.dataclass(frozen=True)
class ZeroOutOneDpEvent(dp_accounting.DpEvent):
    """``event``, whose cost holds if one record's contribution becomes zero while its place stays, and not otherwise.

    Shuffled batches are such: one record more would move all later ones (Kairouz et al. 2021, section 2).
    """

    event: dp_accounting.DpEvent


def named(name) -> str | None:
    """The adjacency of a name, a former name of it included; None if it is neither."""
    name = _FORMER_NAMES.get(name, name) if isinstance(name, str) else None
    return name if name in (ADD_OR_REMOVE_ONE, ZERO_OUT) else None


def of(event: dp_accounting.DpEvent) -> str:
    """The adjacency for which the event's cost holds."""
    return ZERO_OUT if isinstance(event, ZeroOutOneDpEvent) else ADD_OR_REMOVE_ONE


def plain(event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """The event as dp_accounting knows it; :func:`of` must stand beside what it costs."""
    return event.event if isinstance(event, ZeroOutOneDpEvent) else event


def common(events: Iterable[dp_accounting.DpEvent]) -> str:
    """The one adjacency of several events.

    Raises:
        InputError: if there are two: what holds for a record that is absent need not hold for one that is zeroed (a
            count of records with small gradients moves twice as far), nor the other way round.
    """
    found = {of(event) for event in events}
    if len(found) > 1:
        raise InputError(
            f"Expected events of one adjacency, got {ADD_OR_REMOVE_ONE} and {ZERO_OUT} (shuffled batches), whose "
            "costs do not add up; account for them apart, or sample by sampling='poisson'."
        )
    return found.pop() if found else ADD_OR_REMOVE_ONE
