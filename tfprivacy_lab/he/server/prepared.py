"""Heads in the form in which they meet ciphertexts: made once for each set, step and packing, by whoever asks first.

Quantising and transforming a large head takes seconds and a hundred megabytes, and a query of 33 kB may ask for a step
that nobody asked for before. So what is made is kept as far as ``KEPT_BYTES`` reach, those used last; two that ask for
the same at a time make it once; and what was refused lately is not tried again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable

from tfprivacy_lab.checks import InputError

KEPT_BYTES = 256 * 2**20
"""What prepared heads may take together; the one used last is kept whatever its size."""

_REFUSED_KEPT = 256


class PreparedHeads:
    """Prepared heads by key.

    Args:
        make: ``make(*key)`` prepares a head, which knows its ``nbytes``, or raises InputError.
        most_bytes: What to keep.
    """

    def __init__(self, make: Callable, most_bytes: int = KEPT_BYTES):
        self._make, self._most_bytes = make, most_bytes
        self._lock = threading.Lock()
        self._kept = collections.OrderedDict()
        self._refused: dict[tuple, str] = {}
        self._flights: dict[tuple, concurrent.futures.Future] = {}

    def __contains__(self, key: tuple) -> bool:
        return key in self._kept or key in self._refused

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        return sum(head.nbytes for head in self._kept.values())

    def kept(self, key: tuple):
        """The prepared head if it is kept at the moment, or None.

        Raises:
            InputError: if ``make`` refused it lately.
        """
        with self._lock:
            if key in self._refused:
                raise InputError(self._refused[key])
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def get(self, key: tuple):
        """The prepared head, made now if it is not kept.

        Raises:
            InputError: as ``make`` does, and again at once for the same key.
        """
        with self._lock:
            if key in self._refused:
                raise InputError(self._refused[key])
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            flight, mine = self._flights.get(key), key not in self._flights
            if mine:
                flight = self._flights[key] = concurrent.futures.Future()
        if mine:
            self._land(key, flight)
        return flight.result()

    def _land(self, key: tuple, flight: concurrent.futures.Future) -> None:
        """Make what others wait for as well."""
        try:
            head = self._make(*key)
        except BaseException as error:
            with self._lock:
                if isinstance(error, InputError):
                    self._refused[key] = str(error)
                    while len(self._refused) > _REFUSED_KEPT:
                        del self._refused[next(iter(self._refused))]
                del self._flights[key]
            flight.set_exception(error)
            return
        with self._lock:
            self._kept[key] = head
            while len(self._kept) > 1 and self.nbytes > self._most_bytes:
                self._kept.popitem(last=False)
            del self._flights[key]
        flight.set_result(head)
