"""The ranker against a real broker: live statistics, live sources, the release a request began with."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from protos.headrace.v1.generator_pb2 import Candidate
from protos.headrace.v1.ranker_pb2 import RankedItem, RankRequest, RankResponse
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceStub
from protos.headrace.v1.recommend_pb2 import (
    CANDIDATE_SOURCE_BEAM,
    CANDIDATE_SOURCE_COOCCURRENCE,
    CANDIDATE_SOURCE_DENSE,
    CANDIDATE_SOURCE_NEW,
    CANDIDATE_SOURCE_TRENDING,
)
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.ranker.__main__ import serve
from services.release import ReleasePublisher
from services.settings import Settings
from streaming.topics import INTERACTIONS
from tests.factories import TIME_MS, make_history, make_release
from tests.integration.serving import (
    make_settings,
    own_broker,
    ready,
    send,
    serving,
    until,
    violated_fields,
)

pytestmark = pytest.mark.integration

NOW_MS = TIME_MS + 3_600_000


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_broker(tmp_path_factory.mktemp("ranker-broker")) as address:
        yield address


@pytest.fixture
def settings(bootstrap: str, tmp_path: Path) -> Settings:
    return make_settings(bootstrap, tmp_path)


def click(user_id: str, number: int, event_id: str) -> tuple[str, Event]:
    return user_id, Event(
        event_id=event_id,
        user_id=user_id,
        item_id=f"item-{number}",
        action=ACTION_CLICK,
        event_time_ms=NOW_MS - 1_000,
    )


def by_id(response: RankResponse) -> dict[str, RankedItem]:
    return {item.item_id: item for item in response.items}


def make_request(**fields: object) -> RankRequest:
    candidates = [
        Candidate(item_id="item-3", sources=[CANDIDATE_SOURCE_BEAM], beam_score=-2.0),
        Candidate(item_id="item-7", sources=[CANDIDATE_SOURCE_DENSE], dense_score=1.0),
        Candidate(item_id="unheard-of", sources=[CANDIDATE_SOURCE_DENSE]),
    ]
    return RankRequest(
        history=make_history(1, 2),
        candidates=candidates,
        request_time_ms=NOW_MS,
        **fields,  # type: ignore[arg-type]
    )


async def test_the_ranker_from_start_to_swap(settings: Settings) -> None:
    # read already, says the release: these must not be counted again
    await asyncio.to_thread(send, settings, INTERACTIONS, *[click("u0", 9, f"old-{n}") for n in range(3)])
    bundle = make_release("rank-1", offsets={f"{INTERACTIONS}/{p}": 3 for p in range(2)})
    publisher = ReleasePublisher(settings)
    async with serving("ranker", serve, settings) as connection:
        stub = RankerServiceStub(connection)
        await asyncio.to_thread(publisher.publish, bundle, RELEASE_STATE_LIVE)
        await ready(connection)
        await check_answers(stub)
        await check_refused_requests(stub)
        await check_live_statistics(stub, settings)

        await asyncio.to_thread(publisher.publish, make_release("rank-2", seed=2), RELEASE_STATE_LIVE)

        async def swapped() -> bool:
            return (await stub.Rank(make_request())).release_id == "rank-2"

        await until(swapped)
        # a request that began on the release before is still answered by it
        assert (await stub.Rank(make_request(release_id="rank-1"))).release_id == "rank-1"
        # and the statistics went on
        ranked = by_id(await stub.Rank(make_request(explain=True)))
        assert features(ranked["item-30"])["log_count_total"] > 0


def features(item: RankedItem) -> dict[str, float]:
    return {feature.name: feature.value for feature in item.features}


async def check_answers(stub: RankerServiceStub) -> None:
    only_given = [CANDIDATE_SOURCE_COOCCURRENCE, CANDIDATE_SOURCE_TRENDING, CANDIDATE_SOURCE_NEW]
    response = await stub.Rank(make_request(disabled_sources=only_given, release_id="rank-1"))
    assert response.release_id == "rank-1"
    assert sorted(item.item_id for item in response.items) == ["item-3", "item-7"]
    scores = [item.score for item in response.items]
    assert scores == sorted(scores, reverse=True)
    probabilities = response.items[0].action_probabilities
    assert {"click", "purchase"} <= set(probabilities)
    assert all(0 <= p <= 1 for p in probabilities.values())
    assert not response.items[0].features
    # the release's own statistics know one event, on item-0
    ranked = by_id(await stub.Rank(make_request(explain=True)))
    assert list(ranked["item-0"].sources) == [CANDIDATE_SOURCE_TRENDING]
    assert features(ranked["item-0"])["log_count_total"] > 0
    assert features(ranked["item-3"])["no_event_yet"] == 1
    ranked = by_id(await stub.Rank(make_request(exclude_item_ids=["item-0", "item-3"])))
    assert {"item-0", "item-3"}.isdisjoint(ranked)
    empty = await stub.Rank(RankRequest(disabled_sources=only_given))
    assert not empty.items


async def check_refused_requests(stub: RankerServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Rank(make_request(release_id="another"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    request = make_request(disabled_sources=[77])
    request.candidates[1].beam_score = float("nan")
    request.history[0].item_id = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Rank(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = ["history[0].item_id", "candidates[1].beam_score", "disabled_sources[0]"]
    assert violated_fields(caught.value) == fields


async def check_live_statistics(stub: RankerServiceStub, settings: Settings) -> None:
    # item-2 is the last of the history: item-30 is clicked with it
    clicks = [click("u0", 2, "e1"), click("u0", 30, "e2"), click("u0", 30, "e2"), click("u0", 31, "e3")]
    await asyncio.to_thread(send, settings, INTERACTIONS, *clicks)

    async def ranked_with_it() -> dict[str, RankedItem]:
        ranked = by_id(await stub.Rank(make_request(explain=True)))
        return ranked if "item-31" in ranked else {}

    ranked = await until(ranked_with_it)
    assert CANDIDATE_SOURCE_COOCCURRENCE in ranked["item-30"].sources
    # sent twice, counted once
    assert features(ranked["item-30"])["log_count_total"] == features(ranked["item-31"])["log_count_total"]
    assert "item-9" not in ranked
