"""From histories to candidates: the beam over semantic IDs and the dense neighbours, united.

Owns the union of the two searches. Does not know the live statistics (`models.ranking.live_sources`) nor the
ranker.

Shapes: B requests, K beams, M candidates, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.arrays import Int64Array
from models.batch import HistoryBatch
from models.candidates import Candidates, Source, unite
from models.decoding.beam_search import SearchResult
from models.decoding.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one batch of requests got: candidates, the states they came from (float32 [B, D]), and the beam's
    own result, None where it was not asked."""

    candidates: list[Candidates]
    state_BD: Tensor
    search: SearchResult | None


def generate(
    engine: Engine,
    history: HistoryBatch | None,
    *,
    k: int,
    beam: int,
    exclude: Sequence[Int64Array] | None = None,
    use_beam: bool = True,
    use_dense: bool = True,
    state_BD: Tensor | None = None,
) -> Generation:
    """At most `k` items from each search for each of B histories, each item once, best beams first.

    Rows in `exclude` (one int64 array per request) and unavailable items are never among them. `state_BD`:
    the states of these histories (float32 [B, D]) where they are known; nothing else is read of them then.
    Raises ValueError for a k or beam below 1, and without histories and states.
    """
    if state_BD is None:
        if history is None:
            raise ValueError("neither histories nor states")
        state_BD = engine.states(history).state_BD
    proposals: list[list[Candidates]] = [[_nothing()] for _ in range(len(state_BD))]
    search = None
    if use_beam and len(engine.catalogue):
        search = engine.decode(state_BD, k=k, beam=max(beam, k), exclude=exclude)
        for b, found in enumerate(_from_beam(search)):
            proposals[b].append(found)
    if use_dense and len(engine.catalogue):
        for b, (row_M, dense_M) in enumerate(engine.nearest(state_BD, k=k, exclude=exclude)):
            unknown_M = np.full(len(row_M), np.nan, dtype=np.float32)
            proposals[b].append(_proposed(Source.DENSE, row_M, beam_M=unknown_M, dense_M=dense_M))
    return Generation(candidates=[unite(one) for one in proposals], state_BD=state_BD, search=search)


def _nothing() -> Candidates:
    no_scores, no_rows = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    return _proposed(Source.BEAM, no_rows, beam_M=no_scores, dense_M=no_scores)


def _from_beam(search: SearchResult) -> list[Candidates]:
    found = []
    for row_K, score_K in zip(search.row_BK.numpy(), search.score_BK.numpy(), strict=True):
        row_M, score_M = row_K[row_K >= 0], score_K[row_K >= 0]
        unknown_M = np.full(len(row_M), np.nan, dtype=np.float32)
        found.append(_proposed(Source.BEAM, row_M, beam_M=score_M, dense_M=unknown_M))
    return found


def _proposed(source: Source, row_M: Int64Array, *, beam_M: np.ndarray, dense_M: np.ndarray) -> Candidates:
    source_M = np.full(len(row_M), source.bit, dtype=np.int64)
    return Candidates(row_M=row_M, source_M=source_M, beam_M=beam_M, dense_M=dense_M)
