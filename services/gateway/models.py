"""The models as the gateway asks them: a ranking by one release, a ranking without the ranker, or none.

`Models` is what the engine needs; `PairedModels` asks generator and ranker one after the other, wherever they
are. Knows no policy, no fallback and no network.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeVar

from protos.headrace.v1.events_pb2 import HistoryEvent
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.ranker_pb2 import Explanation, RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import CandidateSource
from services.errors import BackendUnavailable, NotFound, WrongRelease
from services.gateway.ranking import RankedItem, Ranking

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)

# Seconds that a call to a service behind this one may take; raises DeadlineExpired if none are left.
TimeLeft = Callable[[], float]

# A release goes live in generator and ranker at slightly different moments: a second try finds both on it.
_PAIR_ATTEMPTS = 2


class Call(Protocol[Request, Response]):
    """One method of a service behind this one.

    Takes a request and the seconds it may take; raises DeadlineExpired, WrongRelease, BackendUnavailable.
    """

    async def __call__(self, request: Request, left_s: float) -> Response: ...


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the model is asked: the history oldest first, and the limits of the request."""

    history: Sequence[HistoryEvent]
    num_candidates: int
    beam: int
    exclude_item_ids: Sequence[str]
    disabled_sources: Sequence["CandidateSource.ValueType"]
    request_time_ms: int
    user_key: int


@dataclass(frozen=True, kw_only=True)
class Explained:
    """How a release's ranker sees one item."""

    item: RankedItem
    explanation: Explanation
    release_id: str


class Models(Protocol):
    """What makes rankings. Stage latencies go into the caller's dict, in milliseconds."""

    async def ranking(self, ask: Ask, left: TimeLeft, latency_ms: dict[str, float]) -> Ranking | None:
        """The model's answer, or None if the generator gives none; raises DeadlineExpired."""
        ...

    async def explain(self, ask: Ask, item_id: str, left: TimeLeft) -> Explained:
        """How the ranker sees `item_id` among the user's candidates.

        Raises NotFound if the release does not hold the item, BackendUnavailable, DeadlineExpired.
        """
        ...


class PairedModels:
    """`Models` of a generator and a ranker that are asked one after the other, for the same release."""

    def __init__(
        self, generate: Call[GenerateRequest, GenerateResponse], rank: Call[RankRequest, RankResponse]
    ) -> None:
        self._generate_by = generate
        self._rank_by = rank

    async def ranking(self, ask: Ask, left: TimeLeft, latency_ms: dict[str, float]) -> Ranking | None:
        """As `Models.ranking`."""
        for attempt in range(1, _PAIR_ATTEMPTS + 1):
            try:
                generated = await self._generate(ask, left, latency_ms)
            except BackendUnavailable:
                return None
            try:
                ranked = await self._rank(rank_request(ask, generated), left, latency_ms)
            except WrongRelease:
                if attempt < _PAIR_ATTEMPTS:
                    continue
                return unranked(
                    generated.candidates.item_ids, generated.candidates.source_masks, generated.release_id
                )
            except BackendUnavailable:
                return unranked(
                    generated.candidates.item_ids, generated.candidates.source_masks, generated.release_id
                )
            return Ranking(items=_items(ranked), release_id=ranked.release_id, degraded=False)
        raise AssertionError("unreachable")

    async def explain(self, ask: Ask, item_id: str, left: TimeLeft) -> Explained:
        """As `Models.explain`."""
        for attempt in range(1, _PAIR_ATTEMPTS + 1):
            generated = await self._generate(ask, left, {})
            request = rank_request(ask, generated)
            if item_id not in request.candidates.item_ids:
                request.candidates.item_ids.append(item_id)
                request.candidates.source_masks.append(0)
                request.candidates.beam_scores.append(math.nan)
            request.explain_item_id = item_id
            try:
                ranked = await self._rank(request, left, {})
            except WrongRelease as error:
                if attempt < _PAIR_ATTEMPTS:
                    continue
                raise BackendUnavailable("generator and ranker serve different releases") from error
            for item in _items(ranked):
                if item.item_id == item_id:
                    return Explained(item=item, explanation=ranked.explanation, release_id=ranked.release_id)
            raise NotFound(f"item {item_id} is not in release {ranked.release_id}")
        raise AssertionError("unreachable")

    async def _generate(self, ask: Ask, left: TimeLeft, latency_ms: dict[str, float]) -> GenerateResponse:
        request = generate_request(ask)
        start = perf_counter()
        try:
            return await self._generate_by(request, left())
        finally:
            _add_ms(latency_ms, "generate", start)

    async def _rank(self, request: RankRequest, left: TimeLeft, latency_ms: dict[str, float]) -> RankResponse:
        start = perf_counter()
        try:
            return await self._rank_by(request, left())
        finally:
            _add_ms(latency_ms, "rank", start)


def _add_ms(latency_ms: dict[str, float], stage: str, start: float) -> None:
    latency_ms[stage] = latency_ms.get(stage, 0.0) + (perf_counter() - start) * 1_000


def generate_request(ask: Ask) -> GenerateRequest:
    """The request to the generator."""
    return GenerateRequest(
        history=ask.history,
        num_candidates=ask.num_candidates,
        beam=ask.beam,
        exclude_item_ids=ask.exclude_item_ids,
        disabled_sources=ask.disabled_sources,
        user_key=ask.user_key,
    )


def rank_request(ask: Ask, generated: GenerateResponse) -> RankRequest:
    """The request to the ranker of the same release, for the generator's candidates."""
    return RankRequest(
        history=ask.history,
        candidates=generated.candidates,
        disabled_sources=ask.disabled_sources,
        exclude_item_ids=ask.exclude_item_ids,
        request_time_ms=ask.request_time_ms,
        release_id=generated.release_id,
        user_state=generated.user_state,
    )


def _items(ranked: RankResponse) -> Iterable[RankedItem]:
    return map(RankedItem, ranked.item_ids, ranked.scores, ranked.source_masks)


def unranked(item_ids: Iterable[str], source_masks: Iterable[int], release_id: str) -> Ranking:
    """The generator's own order; its scores are of different kinds, so the position is the score."""
    pairs = zip(item_ids, source_masks, strict=True)
    items = (RankedItem(item_id, 1.0 / place, mask) for place, (item_id, mask) in enumerate(pairs, 1))
    return Ranking(items=items, release_id=release_id, degraded=True)
