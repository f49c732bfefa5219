"""The ranker against a real broker: live statistics, live sources, the release a request began with."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from models.ranking.live_sources import LIVE_SOURCES
from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from protos.headrace.v1.generator_pb2 import Candidates
from protos.headrace.v1.ranker_pb2 import RankRequest, RankResponse
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceStub
from protos.headrace.v1.recommend_pb2 import (
    CANDIDATE_SOURCE_BEAM,
    CANDIDATE_SOURCE_COOCCURRENCE,
    CANDIDATE_SOURCE_DENSE,
    CANDIDATE_SOURCE_TRENDING,
)
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.ranker.__main__ import serve
from services.releases.publisher import ReleasePublisher
from services.settings import Settings
from services.wire.source_masks import mask_of, sources_of
from streaming.messages.topics import INTERACTIONS
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


def make_request(**fields: object) -> RankRequest:
    candidates = Candidates(
        item_ids=["item-3", "item-7", "unheard-of"],
        source_masks=[mask_of(s) for s in (CANDIDATE_SOURCE_BEAM, *[CANDIDATE_SOURCE_DENSE] * 2)],
        beam_scores=[-2.0, math.nan, math.nan],
    )
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
        ranked = await stub.Rank(make_request(explain_item_id="item-30"))
        assert features(ranked)["log_count_total"] > 0


def features(response: RankResponse) -> dict[str, float]:
    return {feature.name: feature.value for feature in response.explanation.features}


async def check_answers(stub: RankerServiceStub) -> None:
    response = await stub.Rank(make_request(disabled_sources=LIVE_SOURCES, release_id="rank-1"))
    assert response.release_id == "rank-1"
    assert sorted(response.item_ids) == ["item-3", "item-7"]
    assert list(response.scores) == sorted(response.scores, reverse=True)
    # the release's own statistics know one event, on item-0
    ranked = await stub.Rank(make_request(explain_item_id="item-0"))
    mask = ranked.source_masks[list(ranked.item_ids).index("item-0")]
    assert sources_of(mask) == (CANDIDATE_SOURCE_TRENDING,)
    assert features(ranked)["log_count_total"] > 0
    probabilities = ranked.explanation.action_probabilities
    assert {"click", "purchase"} <= set(probabilities)
    assert all(0 <= p <= 1 for p in probabilities.values())
    assert features(await stub.Rank(make_request(explain_item_id="item-3")))["no_event_yet"] == 1
    ranked = await stub.Rank(make_request(exclude_item_ids=["item-0", "item-3"]))
    assert {"item-0", "item-3"}.isdisjoint(ranked.item_ids)
    empty = await stub.Rank(RankRequest(disabled_sources=LIVE_SOURCES))
    assert not empty.item_ids


async def check_refused_requests(stub: RankerServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Rank(make_request(release_id="another"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    request = make_request(disabled_sources=[77])
    request.candidates.beam_scores[0] = math.nan
    request.history[0].item_id = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Rank(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = ["history[0].item_id", "candidates.beam_scores[0]", "disabled_sources[0]"]
    assert violated_fields(caught.value) == fields


async def check_live_statistics(stub: RankerServiceStub, settings: Settings) -> None:
    # item-2 is the last of the history: item-30 is clicked with it
    clicks = [click("u0", 2, "e1"), click("u0", 30, "e2"), click("u0", 30, "e2"), click("u0", 31, "e3")]
    await asyncio.to_thread(send, settings, INTERACTIONS, *clicks)

    async def explained(item_id: str) -> RankResponse:
        return await stub.Rank(make_request(explain_item_id=item_id))

    async def ranked_with_it() -> RankResponse | None:
        ranked = await explained("item-31")
        return ranked if "item-31" in ranked.item_ids else None

    ranked = await until(ranked_with_it)
    mask = ranked.source_masks[list(ranked.item_ids).index("item-30")]
    assert CANDIDATE_SOURCE_COOCCURRENCE in sources_of(mask)
    # sent twice, counted once
    counted = features(await explained("item-30"))["log_count_total"]
    assert counted == features(await explained("item-31"))["log_count_total"]
    assert "item-9" not in ranked.item_ids
