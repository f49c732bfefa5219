"""Candidates: where they come from, and how proposals of several sources become one list.

Owns the sources' numbers, the size of each live source and the union. The beam and the dense head
propose in `models.generation`; the sources here need only the live statistics and the catalogue.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from models.batch import Candidates, Int64Array
from models.catalogue import CatalogueIndex
from models.features import Float32Array
from models.statistics import LiveStatistics

NUM_COOCCURRING = 60
NUM_TRENDING = 40
NUM_NEW = 40
# An item is new for so long after its announcement, and while it had fewer engagements than this.
NEW_FOR_MS = 14 * 86_400_000
NEW_UNTIL_EVENTS = 5


class Source(IntEnum):
    """What brought a candidate: the numbers of `headrace.v1.CandidateSource`."""

    BEAM = 1
    DENSE = 2
    COOCCURRENCE = 3
    TRENDING = 4
    NEW = 5
    FALLBACK = 6

    @property
    def bit(self) -> int:
        """Its bit in `Candidates.source_M`."""
        return 1 << int(self)


def unite(proposals: Sequence[Candidates]) -> Candidates:
    """The union, each row once, in order of first appearance; of two scores the first known one stays."""
    row_M = np.concatenate([one.row_M for one in proposals])
    unique_U, first_U, inverse_M = np.unique(row_M, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U, kind="stable")
    place_M = np.argsort(order_U, kind="stable")[inverse_M]
    source_U = np.zeros(len(unique_U), dtype=np.int64)
    np.bitwise_or.at(source_U, place_M, np.concatenate([one.source_M for one in proposals]))

    def first_known(score_M: Float32Array) -> Float32Array:
        united_U = np.full(len(unique_U), np.nan, dtype=np.float32)
        known = np.nonzero(~np.isnan(score_M))[0][::-1]  # backwards: the first one is written last
        united_U[place_M[known]] = score_M[known]
        return united_U

    return Candidates(
        row_M=unique_U[order_U],
        source_M=source_U,
        beam_M=first_known(np.concatenate([one.beam_M for one in proposals])),
        dense_M=first_known(np.concatenate([one.dense_M for one in proposals])),
    )


def proposed_by(source: Source, row_M: Int64Array) -> Candidates:
    """Rows proposed by one source, without scores."""
    unknown_M = np.full(len(row_M), np.nan, dtype=np.float32)
    return Candidates(
        row_M=row_M,
        source_M=np.full(len(row_M), source.bit, dtype=np.int64),
        beam_M=unknown_M,
        dense_M=unknown_M,
    )


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

    `recent_rows` are the user's rows, oldest first. Rows in `exclude` and items that are not available
    are not in the result, wherever they came from.
    """
    allowed_N = np.array(catalogue.available_N)
    if exclude is not None:
        allowed_N[exclude[exclude >= 0]] = False
    num_excluded = 0 if exclude is None else len(exclude)
    proposals = [_select(candidates, allowed_N[candidates.row_M])]
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
    """Rows announced in the last `NEW_FOR_MS` that had few engagements, the newest first.

    "Now" is `time_ms`, but no later than the newest event or announcement: what is not streamed does not
    age, as in the features. Items that are announced later than `time_ms` are not known yet.
    """
    announced_N = np.asarray(catalogue.announced_ms_N)
    announced_N = np.where(announced_N <= time_ms, announced_N, 0)
    now_ms = min(time_ms, max(statistics.newest_ms, int(announced_N.max(initial=0))))
    recent = np.nonzero(announced_N > max(0, now_ms - NEW_FOR_MS))[0]
    recent = recent[np.lexsort((-recent, -announced_N[recent]))][: 10 * NUM_NEW]
    total_M = statistics.totals(statistics.rows([catalogue.item_ids[row] for row in recent.tolist()]))
    return recent[total_M < NEW_UNTIL_EVENTS].astype(np.int64)


def _select(candidates: Candidates, keep_M: npt.NDArray[np.bool_]) -> Candidates:
    if keep_M.all():
        return candidates
    return Candidates(
        row_M=candidates.row_M[keep_M],
        source_M=candidates.source_M[keep_M],
        beam_M=candidates.beam_M[keep_M],
        dense_M=candidates.dense_M[keep_M],
    )


def _limit(source: Source, row_M: Int64Array, allowed_N: npt.NDArray[np.bool_], limit: int) -> Candidates:
    row_M = row_M[row_M >= 0]
    return proposed_by(source, row_M[allowed_N[row_M]][:limit])
