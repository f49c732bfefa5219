"""The decisions of Recommend: which path answers, what it says, and that releases are never mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.generator_pb2 import Candidates, GenerateRequest, GenerateResponse
from protos.headrace.v1.items_pb2 import Item, SemanticId
from protos.headrace.v1.ranker_pb2 import Explanation, RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    FallbackReason,
    RecommendRequest,
    RecommendResponse,
    ShortfallReason,
)
from protos.headrace.v1.release_pb2 import Release, ReleaseState
from protos.headrace.v1.tokenizer_pb2 import TokenizeRequest, TokenizeResponse
from protos.headrace.v1.trends_pb2 import Trend
from services.errors import BackendUnavailable, DeadlineExpired, NotFound
from services.gateway.engine import RecommendationEngine
from services.gateway.models import PairedModels
from services.gateway.recommendation_log import RecommendationLogWriter
from services.gateway.remote import remote
from services.gateway.views import Views
from services.settings import Settings
from services.wire.source_masks import mask_of
from services.wire.user_key import user_key
from streaming.clients.producer import AsyncProducer
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import HistoryStore
from streaming.messages.records import Record

CODE = grpc.StatusCode
BEAM = CandidateSource.CANDIDATE_SOURCE_BEAM
FALLBACK = CandidateSource.CANDIDATE_SOURCE_FALLBACK


def failure(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


@dataclass
class FakeModel:
    """Generator, ranker and tokenizer at once: proposes `items`, ranks them backwards."""

    items: Sequence[str] = ("a", "b", "c", "d")
    generator_releases: Iterator[str] = field(default_factory=lambda: iter(["r1"] * 10))
    ranker_releases: Iterator[str] = field(default_factory=lambda: iter(["r1"] * 10))
    generator_failure: grpc.StatusCode | None = None
    ranker_failure: grpc.StatusCode | None = None
    generated: list[GenerateRequest] = field(default_factory=list)
    ranked: list[RankRequest] = field(default_factory=list)

    async def Generate(self, request: GenerateRequest, **_: float) -> GenerateResponse:
        self.generated.append(request)
        if self.generator_failure:
            raise failure(self.generator_failure)
        return GenerateResponse(
            candidates=Candidates(
                item_ids=self.items,
                source_masks=[mask_of(BEAM)] * len(self.items),
                beam_scores=[-1.0] * len(self.items),
            ),
            release_id=(release_id := next(self.generator_releases)),
            user_state=f"state in {release_id}".encode(),
        )

    async def Rank(self, request: RankRequest, **_: float) -> RankResponse:
        self.ranked.append(request)
        if self.ranker_failure:
            raise failure(self.ranker_failure)
        release_id = next(self.ranker_releases)
        if request.release_id != release_id:
            raise failure(CODE.FAILED_PRECONDITION)
        known = [n for n, item_id in enumerate(request.candidates.item_ids) if item_id != "unknown"][::-1]
        return RankResponse(
            item_ids=[request.candidates.item_ids[n] for n in known],
            scores=[float(n) for n in known],
            source_masks=[request.candidates.source_masks[n] for n in known],
            release_id=release_id,
            explanation=Explanation(action_probabilities={"click": 0.5}) if request.explain_item_id else None,
        )

    async def Tokenize(self, request: TokenizeRequest, **_: float) -> TokenizeResponse:
        return TokenizeResponse(sids={request.item_ids[0]: SemanticId(codes=[1, 2, 3, 0])})


@dataclass
class World:
    """An engine on a real history store, with a model of the test's choice."""

    engine: RecommendationEngine
    views: Views

    async def ask(self, user_id: str = "known", **fields: object) -> RecommendResponse:
        request = RecommendRequest(user_id=user_id, k=3, **fields)  # type: ignore[arg-type]
        return await self.engine.recommend(request, lambda: 1.0)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[HistoryStore]:
    with HistoryStore.open(tmp_path / "history", read_only=False) as store:
        event = Event(event_id="e", user_id="known", item_id="d", action=Action.ACTION_CLICK, event_time_ms=1)
        shown = Event(event_id="s", user_id="known", item_id="c", action=1, event_time_ms=1)
        records = [
            Record(topic="interactions", partition=0, offset=n, key="known", timestamp_ms=1, message=message)
            for n, message in enumerate((event, shown))
        ]
        store.apply(records, {"interactions/0": 2})
        yield store


def world(history: HistoryStore, model: FakeModel) -> World:
    views = Views()
    for place, item_id in enumerate("abcdef"):
        views.items.upsert(Item(item_id=item_id, title=item_id.upper(), announced_time_ms=place))
    views.trends.apply(Trend(item_id="e", decayed_score=2.0, num_events_total=2))
    views.trends.apply(Trend(item_id="not-announced", decayed_score=9.0, num_events_total=9))
    views.releases.put(Release(release_id="r1", state=ReleaseState.RELEASE_STATE_LIVE))
    engine = RecommendationEngine(
        Settings(),
        history=FreshHistory(history),
        views=views,
        models=PairedModels(remote("generator", model.Generate), remote("ranker", model.Rank)),
        tokenize=remote("tokenizer", model.Tokenize),
        log=RecommendationLogWriter(AsyncProducer("nowhere:0")),
    )
    return World(engine, views)


def ids(response: RecommendResponse) -> list[str]:
    return [item.item_id for item in response.recommendations]


async def test_the_ranker_orders_and_seen_items_are_left_out(history: HistoryStore) -> None:
    model = FakeModel()
    response = await world(history, model).ask()
    assert ids(response) == ["c", "b", "a"]
    assert response.release_id == "r1"
    assert not response.degraded
    assert response.fallback_reason == FallbackReason.FALLBACK_REASON_UNSPECIFIED
    assert [stage.stage for stage in response.stages] == ["history", "generate", "rank", "policy", "total"]
    assert list(model.generated[0].exclude_item_ids) == ["d"]
    assert [event.item_id for event in model.ranked[0].history] == ["d"]


async def test_an_unknown_user_gets_what_is_popular(history: HistoryStore) -> None:
    model = FakeModel()
    response = await world(history, model).ask("stranger", request_id="mine")
    assert ids(response) == ["e", "f", "d"]
    assert response.request_id == "mine"
    assert response.fallback_reason == FallbackReason.FALLBACK_REASON_UNKNOWN_USER
    assert not response.degraded
    assert all(list(item.sources) == [FALLBACK] for item in response.recommendations)
    assert not model.generated


@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.INTERNAL, CODE.RESOURCE_EXHAUSTED])
async def test_without_a_generator_popularity_answers(history: HistoryStore, code: grpc.StatusCode) -> None:
    here = world(history, FakeModel(generator_failure=code))
    response = await here.ask()
    assert response.degraded
    assert response.release_id == ""
    assert response.fallback_reason == FallbackReason.FALLBACK_REASON_BACKEND_UNAVAILABLE
    assert ids(response) == ["e", "f", "c"]
    here.views.releases.put(Release(release_id="r1", state=ReleaseState.RELEASE_STATE_RETIRED))
    assert (await here.ask()).fallback_reason == FallbackReason.FALLBACK_REASON_NO_RELEASE


async def test_without_a_ranker_the_generator_orders(history: HistoryStore) -> None:
    response = await world(history, FakeModel(ranker_failure=CODE.UNAVAILABLE)).ask()
    assert ids(response) == ["a", "b", "c"]
    assert (response.degraded, response.release_id) == (True, "r1")
    scores = [item.score for item in response.recommendations]
    assert scores == sorted(scores, reverse=True)


async def test_a_swap_between_the_two_calls_begins_the_pair_again(history: HistoryStore) -> None:
    model = FakeModel(generator_releases=iter(["r1", "r2"]), ranker_releases=iter(["r2", "r2"]))
    response = await world(history, model).ask()
    assert (response.release_id, response.degraded) == ("r2", False)
    assert [request.release_id for request in model.ranked] == ["r1", "r2"]
    assert [request.user_state for request in model.ranked] == [b"state in r1", b"state in r2"]
    assert [request.user_key for request in model.generated] == [user_key("known")] * 2


async def test_a_ranker_that_stays_behind_is_left_out(history: HistoryStore) -> None:
    model = FakeModel(generator_releases=iter(["r2", "r2"]))
    response = await world(history, model).ask()
    assert (response.release_id, response.degraded) == ("r2", True)
    assert len(model.generated) == 2


@pytest.mark.parametrize("stage", ["generator_failure", "ranker_failure"])
async def test_an_expired_deadline_is_not_a_fallback(history: HistoryStore, stage: str) -> None:
    model = FakeModel(**{stage: CODE.DEADLINE_EXCEEDED})  # type: ignore[arg-type]
    with pytest.raises(DeadlineExpired):
        await world(history, model).ask()


async def test_what_the_filters_take_is_filled_from_popularity(history: HistoryStore) -> None:
    response = await world(history, FakeModel(items=("a", "d"))).ask(exclude_item_ids=["f"])
    assert ids(response) == ["a", "e", "c"]
    assert response.shortfall_reason == ShortfallReason.SHORTFALL_REASON_UNSPECIFIED
    assert list(response.recommendations[1].sources) == [FALLBACK]


async def test_the_fallback_can_be_switched_off(history: HistoryStore) -> None:
    here = world(history, FakeModel(items=("a", "d")))
    response = await here.ask(disabled_sources=[FALLBACK])
    assert ids(response) == ["a"]
    assert response.shortfall_reason == ShortfallReason.SHORTFALL_REASON_FILTERED
    assert ids(await here.ask("stranger", disabled_sources=[FALLBACK])) == ["d", "a"]
    down = world(history, FakeModel(generator_failure=CODE.UNAVAILABLE))
    with pytest.raises(BackendUnavailable):
        await down.ask(disabled_sources=[FALLBACK])


async def test_explain_asks_the_ranker_about_the_one_item(history: HistoryStore) -> None:
    model = FakeModel()
    here = world(history, model)
    answer = await here.engine.explain("known", "f", lambda: 1.0)
    assert (answer.release_id, list(answer.sid.codes), list(answer.sources)) == ("r1", [1, 2, 3, 0], [])
    assert dict(answer.action_probabilities) == {"click": 0.5}
    assert model.ranked[0].explain_item_id == "f"
    assert model.ranked[0].candidates.item_ids[-1] == "f"
    assert list((await here.engine.explain("known", "a", lambda: 1.0)).sources) == [1]
    with pytest.raises(NotFound):
        await here.engine.explain("known", "unknown", lambda: 1.0)
