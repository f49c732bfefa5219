"""How one answer is made: history, model, policy, fallback, in that order, each timed.

Owns the decisions of `Recommend`: when the model is asked, when popularity answers instead and what
the answer says about it. A filtered answer is filled up from popularity (source FALLBACK) rather than
by asking the model again: one pair of calls per request, so load does not grow with filters.
"""

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from time import perf_counter

from protos.headrace.v1.events_pb2 import Action, HistoryEvent
from protos.headrace.v1.items_pb2 import SemanticId
from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    ExplainResponse,
    FallbackReason,
    RecommendationLog,
    RecommendRequest,
    RecommendResponse,
    StageLatency,
)
from protos.headrace.v1.tokenizer_pb2 import TokenizeRequest, TokenizeResponse
from services.errors import BackendUnavailable, NotFound
from services.gateway.latency import STAGES, LatencyWindow
from services.gateway.models import Ask, Call, Models, TimeLeft
from services.gateway.policy import Policy, choose, fill, popular, shortfall
from services.gateway.ranking import Ranking
from services.gateway.recommendation_log import RecommendationLogWriter
from services.gateway.validation import DEFAULT_K
from services.gateway.views import Views
from services.metrics import FALLBACKS, RECOMMENDATIONS, stage_seconds
from services.settings import Settings
from services.wire.source_masks import sources_of
from services.wire.user_key import user_key
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import DEFAULT_MAX_EVENTS
from streaming.messages.meaning import Meaning

# An enumeration of protobuf looks its members up by name at each use.
_IMPRESSION, _FALLBACK = Action.ACTION_IMPRESSION, CandidateSource.CANDIDATE_SOURCE_FALLBACK
MAX_CANDIDATES = 512
# Popularity is read this deep: filters and unannounced items take some; then come the newest items.
_FALLBACK_DEPTH = 1_000
# Nothing is down: these users just give the model nothing to go by.
_NOT_DEGRADED = (
    FallbackReason.FALLBACK_REASON_UNKNOWN_USER,
    FallbackReason.FALLBACK_REASON_NO_USABLE_EVENTS,
)


class RecommendationEngine:
    """Answers for one user at a time from the views that the gateway keeps."""

    def __init__(
        self,
        settings: Settings,
        *,
        history: FreshHistory,
        views: Views,
        models: Models,
        tokenize: Call[TokenizeRequest, TokenizeResponse],
        log: RecommendationLogWriter,
    ) -> None:
        self._history_limit = settings.gateway.history_limit
        self._meaning = settings.meaning
        self._default_candidates = settings.search.num_dense
        self._history = history
        self._items = views.items
        self._trends = views.trends
        self._releases = views.releases
        self._models = models
        self._tokenize = tokenize
        self._log = log
        self.latencies = LatencyWindow()

    async def recommend(self, request: RecommendRequest, left: TimeLeft) -> RecommendResponse:
        """A valid request's answer, also written to the recommendation log; raises DeadlineExpired.

        Raises BackendUnavailable only if the caller disabled the fallback and no model answers.
        """
        start = perf_counter()
        latency_ms: dict[str, float] = {}
        now_ms = time.time_ns() // 1_000_000
        events = self._history.get(request.user_id, DEFAULT_MAX_EVENTS)
        latency_ms["history"] = (perf_counter() - start) * 1_000
        policy = Policy.of(request, seen=_had(events))
        ranking, reason = await self._ranking(request, events, policy, now_ms, left, latency_ms)
        policy_start = perf_counter()
        response = self._answer(request, ranking, reason, policy)
        latency_ms["policy"] = (perf_counter() - policy_start) * 1_000
        latency_ms["total"] = (perf_counter() - start) * 1_000
        self._observe(response, latency_ms)
        self._log.put(
            RecommendationLog(
                request_id=response.request_id,
                user_id=request.user_id,
                release_id=response.release_id,
                request_time_ms=now_ms,
                recommendations=response.recommendations,
            )
        )
        return response

    async def explain(self, user_id: str, item_id: str, left: TimeLeft) -> ExplainResponse:
        """What the live release says of this user and item; raises NotFound, BackendUnavailable."""
        now_ms = time.time_ns() // 1_000_000
        ask = self._ask(
            RecommendRequest(user_id=user_id), self._history.get(user_id, self._history_limit), (), now_ms
        )
        sid = await self._semantic_id(item_id, left)
        explained = await self._models.explain(ask, item_id, left)
        return ExplainResponse(
            release_id=explained.release_id,
            sid=sid,
            sources=sources_of(explained.item.source_mask),
            score=explained.item.score,
            action_probabilities=explained.explanation.action_probabilities,
            features=explained.explanation.features,
        )

    async def _semantic_id(self, item_id: str, left: TimeLeft) -> SemanticId:
        response = await self._tokenize(TokenizeRequest(item_ids=[item_id]), left())
        if item_id not in response.sids:
            raise NotFound(f"item {item_id} has no semantic ID")
        return response.sids[item_id]

    async def _ranking(
        self,
        request: RecommendRequest,
        events: Sequence[HistoryEvent],
        policy: Policy,
        now_ms: int,
        left: TimeLeft,
        latency_ms: dict[str, float],
    ) -> tuple[Ranking | None, "FallbackReason.ValueType"]:
        """What the model says, or None and why it was not used.

        Of a user who has only turned things down the model knows no wish: it answers as for a stranger, puts
        items like those at the end, and the answer says so.
        """
        may_fall_back = _FALLBACK not in request.disabled_sources
        told = [self._meaning.of(event.action, event.value) for event in events]
        reason = _unusable(told, is_known=bool(events) or self._history.count(request.user_id) > 0)
        if may_fall_back and reason and Meaning.AVERSION not in told:
            return None, reason
        ask = self._ask(request, events, sorted(policy.blocked), now_ms)
        ranking = await self._models.ranking(ask, left, latency_ms)
        if ranking is not None:
            return ranking, reason if may_fall_back else FallbackReason.FALLBACK_REASON_UNSPECIFIED
        if not may_fall_back:
            raise BackendUnavailable("no model answers, and the request disables the fallback")
        if self._releases.live is None:
            return None, FallbackReason.FALLBACK_REASON_NO_RELEASE
        return None, FallbackReason.FALLBACK_REASON_BACKEND_UNAVAILABLE

    def _ask(
        self,
        request: RecommendRequest,
        events: Sequence[HistoryEvent],
        exclude_item_ids: Sequence[str],
        now_ms: int,
    ) -> Ask:
        # The model does not know categories: a filter needs all the candidates it can give.
        enough = max(self._default_candidates, (request.k or DEFAULT_K) * 2)
        return Ask(
            history=self._telling(events),
            num_candidates=MAX_CANDIDATES if request.categories else min(enough, MAX_CANDIDATES),
            beam=request.beam,
            exclude_item_ids=exclude_item_ids,
            disabled_sources=request.disabled_sources,
            request_time_ms=now_ms,
            user_key=user_key(request.user_id),
        )

    def _telling(self, events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
        """The newest wishes and the newest aversions, so many of each, in order."""
        left = {Meaning.WISH: self._history_limit, Meaning.AVERSION: self._history_limit}
        newest = []
        for event in reversed(events):
            meaning = self._meaning.of(event.action, event.value)
            if left.get(meaning, 0):
                left[meaning] -= 1
                newest.append(event)
        return newest[::-1]

    def _answer(
        self,
        request: RecommendRequest,
        ranking: Ranking | None,
        reason: "FallbackReason.ValueType",
        policy: Policy,
    ) -> RecommendResponse:
        k = request.k or DEFAULT_K
        chosen = choose(ranking.items if ranking else (), policy, self._items, k)
        if _FALLBACK not in request.disabled_sources:
            chosen = fill(chosen, self._fallback_ids(), policy, self._items, k)
        return RecommendResponse(
            request_id=request.request_id or uuid.uuid4().hex,
            recommendations=chosen,
            release_id=ranking.release_id if ranking else "",
            fallback_reason=reason,
            shortfall_reason=shortfall(len(chosen), k, self._items),
            degraded=ranking.degraded if ranking else reason not in _NOT_DEGRADED,
        )

    def _fallback_ids(self) -> Iterator[str]:
        """What fills an answer; nothing is sorted for one that is full."""
        popular_ids = [trend.item_id for trend in self._trends.top(_FALLBACK_DEPTH)]
        yield from popular(popular_ids, self._items)

    def _observe(self, response: RecommendResponse, latency_ms: dict[str, float]) -> None:
        response.stages.extend(
            StageLatency(stage=stage, latency_ms=latency_ms[stage]) for stage in STAGES if stage in latency_ms
        )
        for stage, value in latency_ms.items():
            stage_seconds(stage).observe(value / 1_000)
        self.latencies.add(latency_ms)
        RECOMMENDATIONS.observe(len(response.recommendations))
        if response.fallback_reason:
            name = FallbackReason.Name(response.fallback_reason)
            FALLBACKS.labels(reason=name.removeprefix("FALLBACK_REASON_").lower()).inc()


def _had(events: Sequence[HistoryEvent]) -> set[str]:
    """Items the user had; being shown one does not count."""
    return {event.item_id for event in events if event.action != _IMPRESSION}


def _unusable(meanings: Collection[Meaning], *, is_known: bool) -> "FallbackReason.ValueType":
    """Why events of these meanings hold no wish to go by; UNSPECIFIED where they do.

    A user who is known without any of them was only shown things.
    """
    if not is_known:
        return FallbackReason.FALLBACK_REASON_UNKNOWN_USER
    if Meaning.WISH not in meanings:
        return FallbackReason.FALLBACK_REASON_NO_USABLE_EVENTS
    return FallbackReason.FALLBACK_REASON_UNSPECIFIED
