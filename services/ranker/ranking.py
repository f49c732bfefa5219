"""Requests to rank in the model's terms, and their candidates in order; wherever the candidates came from."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from models.arrays import Int64Array
from models.candidates import Candidates
from models.ranking.scorer import RankResult, Scorer, order_by_score
from protos.headrace.v1.events_pb2 import HistoryEvent
from services.wire import translate
from services.wire.translate import PastEvent
from streaming.messages.meaning import EventMeaning


class Asking(Protocol):
    """What ranking reads of a request: a `RankRequest`, or whatever asks the same."""

    @property
    def history(self) -> Sequence[HistoryEvent]: ...
    @property
    def disabled_sources(self) -> Iterable[int]: ...
    @property
    def request_time_ms(self) -> int: ...


class Found(Protocol):
    """What was found for a user in the live release: the events it knows, the excluded rows (int64), the
    candidates, and the state that they came from, float32 [1, D]."""

    @property
    def past(self) -> list[PastEvent]: ...
    @property
    def exclude_X(self) -> Int64Array: ...
    @property
    def candidates(self) -> Candidates: ...
    @property
    def state_1D(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The candidates of one request with their result, and int64 positions from the best to the worst."""

    candidates: Candidates
    result: RankResult
    order_M: Int64Array

    @classmethod
    def of(cls, candidates: Candidates, result: RankResult, item_ids: Sequence[str]) -> "Ranked":
        """Ordered by score, ties by item id."""
        order_M = order_by_score(result.score_M, candidates.row_M, item_ids)
        return cls(candidates=candidates, result=result, order_M=order_M)

    def columns(self) -> tuple[list[int], list[float], list[int]]:
        """Catalogue rows, scores and source masks, best first."""
        rows: list[int] = self.candidates.row_M[self.order_M].tolist()
        scores: list[float] = self.result.score_M[self.order_M].tolist()
        masks: list[int] = self.candidates.source_M[self.order_M].tolist()
        return rows, scores, masks


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request in the model's terms."""

    past: list[PastEvent]
    averse_A: Int64Array
    candidates: Candidates
    time_ms: int

    @classmethod
    def of(
        cls,
        request: Asking,
        past: list[PastEvent],
        candidates: Candidates,
        exclude_X: Int64Array,
        scorer: Scorer,
        meaning: EventMeaning,
    ) -> "Asked":
        """With the candidates of the live sources."""
        catalogue = scorer.catalogue
        time_ms = request.request_time_ms or int(time.time() * 1e3)
        recent = past[-scorer.engine.config.max_history :]
        united = scorer.live_sources.add(
            candidates,
            np.array([row for row, _, _ in recent], dtype=np.int64),
            time_ms,
            disabled=translate.to_sources(request.disabled_sources),
            exclude=exclude_X,
        )
        averse_A = translate.averse_rows(request.history, catalogue, meaning)
        return cls(past=past, averse_A=averse_A, candidates=united, time_ms=time_ms)


def rank(scorer: Scorer, asked: Sequence[Asked], state_BD: Tensor | None) -> list[Ranked]:
    results = scorer.rank_many(
        translate.past_batch([one.past for one in asked], scorer.engine.config.max_history),
        [one.candidates for one in asked],
        [one.time_ms for one in asked],
        state_BD,
        [one.averse_A for one in asked],
    )
    return [
        Ranked.of(one.candidates, result, scorer.catalogue.item_ids)
        for one, result in zip(asked, results, strict=True)
    ]
