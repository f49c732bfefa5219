"""A whole answer: generate, add the live candidates, rank, take the best.

The very functions that the services call one after the other, for evaluation, tests and the learner.
Policy beyond exclusion (categories, diversity) is the gateway's.

Shapes: B requests, K answered items, M candidates.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.batch import HistoryBatch
from models.candidates import Candidates, Source
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.decoding.cpu_engine import CpuEngine
from models.decoding.engine import Engine
from models.decoding.generation import generate
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.live_statistics import LiveStatistics
from models.ranking.scorer import RankResult, Scorer, order_by_score


@dataclass(frozen=True, kw_only=True)
class Answer:
    """At most K distinct items, best first: int64 rows, float32 relevance logits and int64 source masks."""

    row_K: Int64Array
    score_K: Float32Array
    source_K: Int64Array


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """An engine, the scorer on it, and the networks whose weights the engine was loaded with."""

    engine: Engine
    scorer: Scorer
    recommender: GenerativeRecommender
    ranker: Ranker
    search: SearchConfig

    @classmethod
    def build(
        cls,
        recommender: GenerativeRecommender,
        ranker: Ranker,
        catalogue: CatalogueIndex,
        statistics: LiveStatistics,
        search: SearchConfig,
    ) -> "Pipeline":
        """One engine for all of it; sets both networks to evaluation mode."""
        engine = CpuEngine(recommender, catalogue, ranker)
        return cls(
            engine=engine,
            scorer=Scorer(engine, statistics, aversion_weight=search.aversion_weight),
            recommender=recommender,
            ranker=ranker,
            search=search,
        )

    def weights_changed(self) -> None:
        """Loads the networks again, whose weights have just been trained."""
        self.engine.load(self.recommender, self.ranker)


def recommend_many(
    pipeline: Pipeline,
    history: HistoryBatch,
    *,
    k: int,
    time_ms_B: Sequence[int],
    exclude: Sequence[Int64Array],
    averse: Sequence[Int64Array] | None = None,
    disabled: Collection[Source] = (),
) -> list[Answer]:
    """The `k` best items for each of B histories at its time (ms); fewer only where the sources propose
    fewer.

    Rows in `exclude` (int64, one array for each request) are never answered; items like the rows that a user
    turned down (`averse`, int64) lose places. All other sizes are `pipeline.search`'s.
    """
    scorer, search = pipeline.scorer, pipeline.search
    found = generate(
        pipeline.engine,
        history,
        k=max(k, search.num_dense),
        beam=search.beam,
        exclude=exclude,
        use_beam=Source.BEAM not in disabled,
        use_dense=Source.DENSE not in disabled,
    )
    united = [
        with_live(scorer, candidates, history, b, int(time_ms_B[b]), exclude[b], disabled)
        for b, candidates in enumerate(found.candidates)
    ]
    results = scorer.rank_many(history, united, time_ms_B, found.state_BD, averse)
    return [
        take_best(scorer.catalogue, candidates, result, k)
        for candidates, result in zip(united, results, strict=True)
    ]


def take_best(catalogue: CatalogueIndex, candidates: Candidates, result: RankResult, k: int) -> Answer:
    """The `k` candidates with the highest score, ties by item id."""
    best = order_by_score(result.score_M, candidates.row_M, catalogue.item_ids)[:k]
    return Answer(
        row_K=candidates.row_M[best], score_K=result.score_M[best], source_K=candidates.source_M[best]
    )


def with_live(
    scorer: Scorer,
    candidates: Candidates,
    history: HistoryBatch,
    b: int,
    time_ms: int,
    exclude: Int64Array,
    disabled: Collection[Source] = (),
) -> Candidates:
    """`candidates` and those of the live sources for request `b` of a batch of histories; `exclude` int64
    rows."""
    rows = np.asarray(history.item_BT[b, : int(history.length_B[b])])
    return scorer.live_sources.add(candidates, rows, time_ms, disabled=disabled, exclude=exclude)
