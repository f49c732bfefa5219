"""The live sources of candidates: co-occurrence, trending, and what was just announced.

Owns the size of each. The beam and the dense head propose in `models.decoding.generation`; the sources here
need only the live statistics and the catalogue.
"""

from collections.abc import Collection, Iterator

import numpy as np

from models.arrays import Int64Array
from models.candidates import Candidates, Source, proposed_by, unite
from models.kernels.row_sets import open_positions
from models.ranking.shared_rows import SharedRows

LIVE_SOURCES = (Source.COOCCURRENCE, Source.TRENDING, Source.NEW)

NUM_COOCCURRING = 60
NUM_TRENDING = 40
NUM_NEW = 40
# An item is new for this long after its announcement, and while it has fewer wishes than this.
NEW_FOR_MS = 14 * 86_400_000
NEW_UNTIL_EVENTS = 5
_NOTHING = np.empty(0, dtype=np.int64)


class LiveSources:
    """The live sources of one catalogue and one set of live statistics."""

    def __init__(self, rows: SharedRows) -> None:
        self._rows = rows
        self._statistics = rows.statistics
        self._catalogue = rows.catalogue

    def add(
        self,
        candidates: Candidates,
        recent_rows: Int64Array,
        time_ms: int,
        *,
        disabled: Collection[Source] = (),
        exclude: Int64Array = _NOTHING,
    ) -> Candidates:
        """`candidates` and those of the live sources: co-occurrence, trending and newly announced items.

        `recent_rows` (int64) are the user's rows, oldest first; `time_ms` is since the Unix epoch. Rows in
        `exclude` (int64, -1 ignored) and items that are not available are left out, whatever proposed them.
        """
        available_N = self._catalogue.available_N
        proposals = [candidates.at(open_positions(candidates.row_M, available_N, exclude))]
        for source, row_M, limit in self._found(recent_rows, time_ms, len(exclude)):
            if source not in disabled:
                open_M = open_positions(row_M, available_N, exclude)[:limit]
                proposals.append(proposed_by(source, row_M[open_M]))
        return unite(proposals)

    def _found(
        self, recent_rows: Int64Array, time_ms: int, num_excluded: int
    ) -> Iterator[tuple[Source, Int64Array, int]]:
        """Each source with its rows, best first, -1 among them, and how many of those it may propose."""
        recent_R = recent_rows[-self._statistics.config.num_recent_items :]
        tied = self._statistics.cooccurring_rows(self._rows.own(recent_R), NUM_COOCCURRING + len(recent_R))
        yield Source.COOCCURRENCE, self._rows.catalogue_rows(tied), NUM_COOCCURRING
        # some of the hottest may be excluded: ask for more, up to a bound
        hottest = self._statistics.trending_rows(NUM_TRENDING + min(num_excluded, 10 * NUM_TRENDING))
        yield Source.TRENDING, self._rows.catalogue_rows(hottest), NUM_TRENDING
        yield Source.NEW, self.newly_announced(time_ms), NUM_NEW

    def newly_announced(self, time_ms: int) -> Int64Array:
        """Int64 rows announced in the last `NEW_FOR_MS` that had few engagements, the newest first.

        "Now" is `time_ms`, but no later than the newest event or announcement: as in the features, nothing
        ages while nothing is streamed. Items that are announced later than `time_ms` are not known yet.
        """
        announcements = self._catalogue.announcements
        now_ms = min(time_ms, max(self._statistics.newest_ms, announcements.newest_ms(time_ms)))
        recent = announcements.newest(max(0, now_ms - NEW_FOR_MS), time_ms, 10 * NUM_NEW)
        few_M = self._statistics.totals(self._rows.own(recent)) < NEW_UNTIL_EVENTS
        newest: Int64Array = recent[few_M]
        return newest
