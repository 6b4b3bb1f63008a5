"""How far long training is: a bar on a terminal, elsewhere a plain line now and then. All on stderr."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_APART = 5.0


class Progress:
    """Counts steps of a whole, and shows them while it is entered.

    Args:
        title: What is done.
        total: Steps of the whole, >= 1.
        shown: Whether to show anything.
        stream: Where to, or None for stderr. A terminal gets one line that is refreshed and goes at the end; anything
            else gets lines of a percentage and the time left, :data:`SECONDS_APART` at least, so none for short work.
    """

    def __init__(self, title: str, total: int, *, shown: bool = True, stream=None):
        stream = sys.stderr if stream is None else stream
        terminal = stream is not None and stream.isatty()
        self._title, self._total, self._done = title, total, 0
        self._stream = stream if shown and not terminal else None
        self._bar = tqdm(total=total, desc=self._title, leave=False, file=stream, disable=not (shown and terminal))
        self._first, self._said = None, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *problem) -> None:
        self._bar.close()

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._bar.update(steps)
        self._done += steps
        now = time.monotonic()
        if self._first is None:  # TensorFlow traces in the first step: it says nothing of the others.
            self._first = self._done, now
            return
        if self._stream is None or now - self._said < SECONDS_APART or self._done >= self._total:
            return
        done, since = self._first
        self._said, left = now, (now - since) / (self._done - done) * (self._total - self._done)
        print(f"{self._title:<30} {self._done / self._total:4.0%}  {left:.0f} s left", file=self._stream, flush=True)
