"""The live sources of candidates: co-occurrence, trending, and what was just announced.

Owns the size of each. The beam and the dense head propose in `models.decoding.generation`; the sources here
need only the live statistics and the catalogue.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from models.arrays import Int64Array
from models.candidates import Candidates, Source, proposed_by, unite
from models.catalogue.index import CatalogueIndex
from models.ranking.live_statistics import LiveStatistics

LIVE_SOURCES = (Source.COOCCURRENCE, Source.TRENDING, Source.NEW)

NUM_COOCCURRING = 60
NUM_TRENDING = 40
NUM_NEW = 40
# An item is new for this long after its announcement, and while it has fewer wishes than this.
NEW_FOR_MS = 14 * 86_400_000
NEW_UNTIL_EVENTS = 5


def add_live_candidates(
    candidates: Candidates,
    statistics: LiveStatistics,
    catalogue: CatalogueIndex,
    recent_rows: Int64Array,
    time_ms: int,
    *,
    disabled: Collection[Source] = (),
    exclude: Int64Array | None = None,
) -> Candidates:
    """`candidates` and those of the live sources: co-occurrence, trending and newly announced items.

    `recent_rows` (int64) are the user's rows, oldest first; `time_ms` is since the Unix epoch. Rows in
    `exclude` (int64, -1 ignored) and items that are not available are left out, whatever proposed them.
    """
    allowed_N = np.array(catalogue.available_N)
    if exclude is not None:
        allowed_N[exclude[exclude >= 0]] = False
    num_excluded = 0 if exclude is None else len(exclude)
    proposals = [candidates.select(allowed_N[candidates.row_M])]
    if Source.COOCCURRENCE not in disabled and len(recent_rows):
        recent_ids = [catalogue.item_ids[row] for row in recent_rows[-statistics.config.num_recent_items :]]
        found = catalogue.rows(statistics.cooccurring(recent_ids, NUM_COOCCURRING + len(recent_ids)))
        proposals.append(_limit(Source.COOCCURRENCE, found, allowed_N, NUM_COOCCURRING))
    if Source.TRENDING not in disabled:
        # some of the hottest may be excluded: ask for more, up to a bound
        asked = NUM_TRENDING + min(num_excluded, 10 * NUM_TRENDING)
        found = catalogue.rows(statistics.trending(asked))
        proposals.append(_limit(Source.TRENDING, found, allowed_N, NUM_TRENDING))
    if Source.NEW not in disabled:
        found = newly_announced(statistics, catalogue, time_ms)
        proposals.append(_limit(Source.NEW, found, allowed_N, NUM_NEW))
    return unite(proposals)


def newly_announced(statistics: LiveStatistics, catalogue: CatalogueIndex, time_ms: int) -> Int64Array:
    """Int64 rows announced in the last `NEW_FOR_MS` that had few engagements, the newest first.

    "Now" is `time_ms`, but no later than the newest event or announcement: as in the features, nothing ages
    while nothing is streamed. Items that are announced later than `time_ms` are not known yet.
    """
    announced_N = np.asarray(catalogue.announced_ms_N)
    announced_N = np.where(announced_N <= time_ms, announced_N, 0)
    now_ms = min(time_ms, max(statistics.newest_ms, int(announced_N.max(initial=0))))
    recent = np.nonzero(announced_N > max(0, now_ms - NEW_FOR_MS))[0]
    recent = recent[np.lexsort((-recent, -announced_N[recent]))][: 10 * NUM_NEW]
    total_M = statistics.totals(statistics.rows([catalogue.item_ids[row] for row in recent.tolist()]))
    return recent[total_M < NEW_UNTIL_EVENTS].astype(np.int64)


def _limit(source: Source, row_M: Int64Array, allowed_N: npt.NDArray[np.bool_], limit: int) -> Candidates:
    row_M = row_M[row_M >= 0]
    return proposed_by(source, row_M[allowed_N[row_M]][:limit])
