"""From candidates to scores: builds a ranker's input from the live catalogue and statistics, and runs it.

One path for serving and for learning: `rank` is `rank_many` of one request, and the learner trains on
the very batch that it scored.

Shapes: B requests, M candidates, A actions, F live features, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.arrays import Float32Array, Int64Array
from models.batch import HistoryBatch
from models.candidates import Candidates
from models.catalogue.index import CatalogueIndex
from models.decoding.engine import Engine
from models.networks.ranker import RankingBatch
from models.ranking.aversion import aversion_penalty
from models.ranking.features import FeatureSource
from models.ranking.live_sources import LiveSources
from models.ranking.live_statistics import LiveStatistics
from models.ranking.shared_rows import SharedRows


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """Of one request, in the candidates' order: `score_M` (relevance logits), `action_probability_MA` (given
    an event on the item), `feature_MF` (the live features, named by `Scorer.feature_names`); all float32."""

    score_M: Float32Array
    action_probability_MA: Float32Array
    feature_MF: Float32Array


class Scorer:
    """The ranker as it is served: an engine with a ranker, and the live statistics.

    Raises ValueError where the ranker takes another number of features than the statistics make.
    """

    def __init__(self, engine: Engine, statistics: LiveStatistics, *, aversion_weight: float = 0.0) -> None:
        self.engine = engine
        self.statistics = statistics
        self.aversion_weight = aversion_weight
        rows = SharedRows(statistics, engine.catalogue)
        self.feature_source = FeatureSource(rows)
        self.live_sources = LiveSources(rows)
        if len(self.feature_source.names) != engine.num_features:
            raise ValueError(
                f"the ranker takes {engine.num_features} features, the statistics make "
                f"{len(self.feature_source.names)}"
            )

    @property
    def catalogue(self) -> CatalogueIndex:
        """The engine's."""
        return self.engine.catalogue

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns of `feature_MF`."""
        return self.feature_source.names

    def features(self, history: HistoryBatch, b: int, row_M: Int64Array, time_ms: int) -> Float32Array:
        """The live features of distinct int64 rows for request `b`, at the stream position: float32 [M,
        F]."""
        length = int(history.length_B[b])
        last_ms = int(history.time_ms_BT[b, length - 1]) if length else 0
        return self.feature_source.features(row_M, history.item_BT[b, :length].numpy(), last_ms, time_ms)

    def penalty(self, history: HistoryBatch, b: int, row_M: Int64Array, averse_A: Int64Array) -> Float32Array:
        """What each candidate's score loses, float32 [M], as the user of request `b` turned down the int64
        rows `averse_A`."""
        wished_W = history.item_BT[b, : int(history.length_B[b])].numpy()
        return aversion_penalty(self.catalogue, row_M, averse_A, wished_W, self.aversion_weight)

    def rank(
        self, history: HistoryBatch, candidates: Candidates, time_ms: int, state_1D: Tensor | None = None
    ) -> RankResult:
        """Scores the candidates of one history (a batch of one); `state_1D` float32, where known."""
        return self.rank_many(history, [candidates], [time_ms], state_1D)[0]

    def rank_many(
        self,
        history: HistoryBatch,
        candidates: Sequence[Candidates],
        time_ms_B: Sequence[int],
        state_BD: Tensor | None = None,
        averse: Sequence[Int64Array] | None = None,
    ) -> list[RankResult]:
        """Scores the candidates of B histories, each at its time (ms).

        `state_BD`: the user states (float32), where already known. `averse`: the int64 rows that each user
        turned down.
        """
        feature_BMF = [
            self.features(history, b, one.row_M, time_ms)
            for b, (one, time_ms) in enumerate(zip(candidates, time_ms_B, strict=True))
        ]
        return self.score_many(history, candidates, feature_BMF, state_BD, averse)

    def score_many(
        self,
        history: HistoryBatch,
        candidates: Sequence[Candidates],
        feature_BMF: Sequence[Float32Array],
        state_BD: Tensor | None = None,
        averse: Sequence[Int64Array] | None = None,
    ) -> list[RankResult]:
        """`rank_many` with features (float32 [M, F] each) taken before, each at its own stream position."""
        output = self.engine.rank(self.batch(history, candidates, feature_BMF, state_BD))
        probability_BMA = output.action_logit_BMA.sigmoid().numpy()
        relevance_BM = output.relevance_BM.numpy()
        for b, averse_A in enumerate(averse or ()):
            row_M = candidates[b].row_M
            relevance_BM[b, : len(row_M)] -= self.penalty(history, b, row_M, averse_A)
        return [
            RankResult(
                score_M=relevance_BM[b, : len(one)],
                action_probability_MA=probability_BMA[b, : len(one)],
                feature_MF=feature_BMF[b],
            )
            for b, one in enumerate(candidates)
        ]

    def batch(
        self,
        history: HistoryBatch,
        candidates: Sequence[Candidates],
        feature_BMF: Sequence[Float32Array],
        state_BD: Tensor | None = None,
    ) -> RankingBatch:
        """The ranker's input: candidates padded to the longest list, each with its dense logit.

        `feature_BMF` float32 [M, F] for each request; `state_BD` float32, computed where missing.
        """
        if state_BD is None:
            state_BD = self.engine.states(history).state_BD
        row_BM = _pad([one.row_M for one in candidates], -1, np.int64)
        return RankingBatch(
            history=history,
            row_BM=row_BM,
            source_BM=_pad([one.source_M for one in candidates], 0, np.int64),
            beam_BM=_pad([one.beam_M for one in candidates], np.nan, np.float32),
            dense_BM=self.engine.dense_logits(state_BD, row_BM.clamp(min=0)),
            feature_BMF=_pad(feature_BMF, 0, np.float32, self.engine.num_features),
        )


def order_by_score(score_M: Float32Array, row_M: Int64Array, item_ids: Sequence[str]) -> Int64Array:
    """Int64 positions from the best score (float32) to the worst, ties by item id.

    `item_ids` by catalogue row (`row_M` int64).
    """
    order_M = np.argsort(-score_M, kind="stable")
    ordered_M = score_M[order_M]
    if (ordered_M[1:] == ordered_M[:-1]).any():
        id_M = np.array([item_ids[row] for row in row_M.tolist()], dtype=np.str_)
        order_M = np.lexsort((id_M, -score_M))
    return order_M.astype(np.int64)


def _pad(rows: Sequence[npt.NDArray[np.generic]], fill: float, dtype: type, *trailing: int) -> Tensor:
    if len(rows) == 1 and len(rows[0]) and rows[0].dtype == dtype:
        return torch.from_numpy(rows[0][None])
    width = max(1, max((len(row) for row in rows), default=1))
    padded: npt.NDArray[np.generic] = np.full((len(rows), width, *trailing), fill, dtype=dtype)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return torch.from_numpy(padded)
