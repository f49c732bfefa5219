"""One limit for a piece of work of several stages: how much of each stage's time is used up.

A stage ends at a share of the whole, so that one that ends early leaves its time to those after it.
"""

import time
from collections.abc import Callable


class Deadline:
    """`max_seconds` from now; None sets no limit."""

    def __init__(self, max_seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_seconds = max_seconds
        self._clock = clock
        self._began_s = clock()

    @property
    def used_s(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began_s

    def rest(self) -> "Deadline":
        """What is left of it, at least a second, as a deadline of its own."""
        if self.max_seconds is None:
            return self
        return Deadline(max(1.0, self.max_seconds - self.used_s), self._clock)

    def until(self, share: float, *, reserve_s: float = 0.0) -> Callable[[], float]:
        """How much of the time from now to `share` of the whole is used up: 0 to 1, and 1 from then on.

        `reserve_s` of the whole are kept for what comes last and cannot be cut. Always 0 without a limit.
        """
        if self.max_seconds is None:
            return lambda: 0.0
        begin_s = self.used_s
        length_s = share * (self.max_seconds - reserve_s) - begin_s
        return lambda: min(1.0, (self.used_s - begin_s) / length_s) if length_s > 0.0 else 1.0
