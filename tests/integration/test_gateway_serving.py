"""The whole request path with real services: history, generator, ranker, policy; swaps and failures."""

import asyncio
import contextlib
import os
import re
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.generator_pb2 import GenerateRequest
from protos.headrace.v1.generator_pb2_grpc import GeneratorServiceStub
from protos.headrace.v1.ranker_pb2 import RankRequest
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceStub
from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    ExplainRequest,
    FallbackReason,
    GetUserRequest,
    RecommendRequest,
    RecommendResponse,
    TrackRequest,
    UpsertItemsRequest,
)
from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.gateway.__main__ import serve as serve_gateway
from services.generator.__main__ import serve as serve_generator
from services.ranker.__main__ import serve as serve_ranker
from services.releases.publisher import ReleasePublisher
from services.rpc.clients import channel
from services.serving.__main__ import serve as serve_together
from services.settings import EndpointSettings, Settings, to_environment
from services.tokenizer.__main__ import serve as serve_tokenizer
from tests.conftest import find_port_pair
from tests.factories import NUM_ITEMS, make_content, make_item, make_release
from tests.integration.serving import SERVING, health, make_settings, own_broker, ready, serving, until

pytestmark = pytest.mark.integration

K = 5


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "projector", "console")
    endpoints = EndpointSettings(**{name: find_port_pair() for name in names}, metrics_offset=1)
    with own_broker(tmp_path / "broker") as bootstrap:
        yield make_settings(bootstrap, tmp_path).model_copy(update={"endpoints": endpoints})


@asynccontextmanager
async def projector(settings: Settings) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.projector", env=os.environ | to_environment(settings)
    )
    try:
        yield
    finally:
        process.terminate()
        assert await process.wait() == 0


async def publish(settings: Settings, bundle: ReleaseBundle) -> None:
    await asyncio.to_thread(ReleasePublisher(settings).publish, bundle, RELEASE_STATE_LIVE, "test")


def ids(response: RecommendResponse) -> list[str]:
    return [item.item_id for item in response.recommendations]


async def test_a_request_from_history_to_answer_apart(settings: Settings) -> None:
    async with AsyncExitStack() as parts:
        await parts.enter_async_context(projector(settings))
        tokenizer = await parts.enter_async_context(serving("tokenizer", serve_tokenizer, settings))
        generator = AsyncExitStack()
        ranker = AsyncExitStack()
        await parts.enter_async_context(generator)
        await parts.enter_async_context(ranker)
        generator_channel = await generator.enter_async_context(
            serving("generator", serve_generator, settings)
        )
        ranker_channel = await ranker.enter_async_context(serving("ranker", serve_ranker, settings))
        gateway = await parts.enter_async_context(serving("gateway", serve_gateway, settings))
        await publish(settings, make_release("r1"))
        for connection in (tokenizer, generator_channel, ranker_channel, gateway):
            await ready(connection)
        stub = RecommenderServiceStub(gateway)
        await check_recommender(stub, settings)
        await ranker.aclose()
        await check_without_ranker(stub)
        await generator.aclose()
        await check_without_generator(stub)


async def test_a_request_from_history_to_answer_together(settings: Settings) -> None:
    async with AsyncExitStack() as parts:
        await parts.enter_async_context(projector(settings))
        tokenizer = await parts.enter_async_context(serving("tokenizer", serve_tokenizer, settings))
        gateway = await parts.enter_async_context(serving("gateway", serve_together, settings))
        endpoints = settings.endpoints
        generator = await parts.enter_async_context(channel(endpoints.address("generator")))
        ranker = await parts.enter_async_context(channel(endpoints.address("ranker")))
        assert await health(generator) == await health(ranker) != SERVING
        await publish(settings, make_release("r1"))
        for connection in (tokenizer, generator, ranker, gateway):
            await ready(connection)
        stub = RecommenderServiceStub(gateway)
        await check_recommender(stub, settings)
        await check_pair(stub, generator, ranker)
        for name in ("gateway", "generator", "ranker"):
            page = await read_metrics(settings, name)
            assert 'headrace_requests_total{code="OK",method=' in page
            assert {"gateway", "generator", "ranker"} & set(re.findall('service="(.+?)"', page)) == {name}


async def read_metrics(settings: Settings, name: str) -> str:
    """The Prometheus page of a service."""
    url = f"http://{settings.endpoints.host}:{settings.endpoints.metrics_port(name)}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=10) as page:
            return str(page.read().decode())

    return await asyncio.to_thread(read)


async def check_pair(
    stub: RecommenderServiceStub, generator: grpc.aio.Channel, ranker: grpc.aio.Channel
) -> None:
    """`Generate` and `Rank` on their own ports say what `Recommend` says."""
    whole = await stub.Recommend(RecommendRequest(user_id="u", k=K))
    history = (await stub.GetUser(GetUserRequest(user_id="u"))).events
    seen = [event.item_id for event in history]
    found = await GeneratorServiceStub(generator).Generate(
        GenerateRequest(history=history, exclude_item_ids=seen)
    )
    ranked = await RankerServiceStub(ranker).Rank(
        RankRequest(
            history=history,
            exclude_item_ids=seen,
            candidates=found.candidates,
            user_state=found.user_state,
            release_id=found.release_id,
        )
    )
    assert found.release_id == ranked.release_id == whole.release_id
    assert list(ranked.item_ids[:K]) == ids(whole)


async def check_recommender(stub: RecommenderServiceStub, settings: Settings) -> None:
    """The same in either layout."""
    items = [make_item(f"item-{n}", content_E) for n, content_E in enumerate(make_content())]
    await stub.UpsertItems(UpsertItemsRequest(items=items))
    await check_model_answers(stub)
    await check_explanation(stub)
    await check_swap(stub, settings)


async def check_model_answers(stub: RecommenderServiceStub) -> None:
    for n in range(3):
        event = Event(user_id="u", item_id=f"item-{n}", action=Action.ACTION_CLICK)
        await stub.Track(TrackRequest(event=event))

    async def has_history() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await stub.GetUser(GetUserRequest(user_id="u"))).num_events == 3
        return False

    await until(has_history)
    response = await stub.Recommend(RecommendRequest(user_id="u", k=K))
    assert len(set(ids(response))) == K
    assert not {"item-0", "item-1", "item-2"} & set(ids(response))
    assert (response.release_id, response.degraded, response.fallback_reason) == ("r1", False, 0)
    assert [stage.stage for stage in response.stages] == ["history", "generate", "rank", "policy", "total"]
    assert all(item.sources for item in response.recommendations)
    every = await stub.Recommend(RecommendRequest(user_id="u", k=100, include_seen=True))
    assert sorted(ids(every)) == sorted(f"item-{n}" for n in range(NUM_ITEMS))


async def check_explanation(stub: RecommenderServiceStub) -> None:
    first = (await stub.Recommend(RecommendRequest(user_id="u", k=1))).recommendations[0]
    why = await stub.Explain(ExplainRequest(user_id="u", item_id=first.item_id))
    assert why.release_id == "r1"
    assert why.sid.codes
    assert why.features
    assert "click" in why.action_probabilities
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Explain(ExplainRequest(user_id="u", item_id="no-such-item"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


async def check_swap(stub: RecommenderServiceStub, settings: Settings) -> None:
    """Requests go on while a release is swapped: each is answered by one release, and none is degraded."""
    seen: list[RecommendResponse] = []

    async def swapped() -> bool:
        seen.append(await stub.Recommend(RecommendRequest(user_id="u", k=K), timeout=10))
        return seen[-1].release_id == "r2"

    publishing = asyncio.create_task(publish(settings, make_release("r2", parent="r1", seed=2)))
    await until(swapped)
    await publishing
    assert {response.release_id for response in seen} == {"r1", "r2"}
    assert not any(response.degraded or response.fallback_reason for response in seen)


async def check_without_ranker(stub: RecommenderServiceStub) -> None:
    response = await stub.Recommend(RecommendRequest(user_id="u", k=K), timeout=10)
    assert (len(response.recommendations), response.release_id, response.degraded) == (K, "r2", True)


async def check_without_generator(stub: RecommenderServiceStub) -> None:
    response = await stub.Recommend(RecommendRequest(user_id="u", k=K), timeout=10)
    assert response.fallback_reason == FallbackReason.FALLBACK_REASON_BACKEND_UNAVAILABLE
    assert (len(response.recommendations), response.release_id, response.degraded) == (K, "", True)
    fallback = [CandidateSource.CANDIDATE_SOURCE_FALLBACK]
    assert all(list(item.sources) == fallback for item in response.recommendations)
