"""Which items were announced when, in order of time, so that the newest are found without looking at all.

Knows rows and times alone. Announcements mostly come in order, so adding one mostly moves nothing.

Shapes: A items whose announcement is known, N items.
"""

import numpy as np

from models.arrays import Int64Array
from models.catalogue.trie_level import grown


class Announcements:
    """The rows with a known announcement (above 0 ms since the Unix epoch) of a catalogue's
    `announced_ms_N`."""

    def __init__(self, announced_ms_N: Int64Array) -> None:
        row_A = np.nonzero(announced_ms_N > 0)[0]
        row_A = row_A[np.argsort(announced_ms_N[row_A], kind="stable")]
        # both by time, then by row; with room for more
        self._row_A, self._time_ms_A = row_A.astype(np.int64), announced_ms_N[row_A]
        self._num_known = len(row_A)

    def add(self, row: int, announced_ms: int) -> None:
        """Takes in one more item's announcement; one at 0 or before is unknown."""
        if announced_ms <= 0:
            return
        known = self._num_known
        begin, end = (
            int(self._time_ms_A[:known].searchsorted(announced_ms, side)) for side in ("left", "right")
        )
        place = begin + int(self._row_A[begin:end].searchsorted(row))
        self._row_A, self._time_ms_A = grown(self._row_A, known + 1), grown(self._time_ms_A, known + 1)
        for column, value in ((self._row_A, row), (self._time_ms_A, announced_ms)):
            column[place + 1 : known + 1] = column[place:known]
            column[place] = value
        self._num_known = known + 1

    def newest_ms(self, until_ms: int) -> int:
        """The time of the newest announcement that is no later than `until_ms`; 0 without one."""
        known = int(self._time_ms_A[: self._num_known].searchsorted(until_ms, "right"))
        return int(self._time_ms_A[known - 1]) if known else 0

    def newest(self, after_ms: int, until_ms: int, k: int) -> Int64Array:
        """The at most `k` newest rows announced after `after_ms` and no later than `until_ms`, int64, newest
        first; of one moment the highest row first."""
        time_ms_A = self._time_ms_A[: self._num_known]
        begin, end = time_ms_A.searchsorted(after_ms, "right"), time_ms_A.searchsorted(until_ms, "right")
        newest: Int64Array = self._row_A[max(begin, end - k) : end][::-1]
        return newest
