"""The generator against a real broker and a real release: readiness, live items, swaps, refusals."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.generator_pb2_grpc import GeneratorServiceStub
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_DENSE
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.generator.__main__ import serve
from services.metrics import RELEASE_SWAPS
from services.releases.publisher import ReleasePublisher
from services.settings import Settings
from services.wire.source_masks import sources_of
from services.wire.translate import item_sid
from streaming.messages.topics import SEMANTIC_IDS
from tests.factories import make_catalogue, make_content, make_history, make_release
from tests.integration.serving import (
    SERVING,
    health,
    make_settings,
    own_broker,
    ready,
    send,
    serving,
    until,
    violated_fields,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_broker(tmp_path_factory.mktemp("generator-broker")) as address:
        yield address


@pytest.fixture
def settings(bootstrap: str, tmp_path: Path) -> Settings:
    return make_settings(bootstrap, tmp_path)


async def publish(settings: Settings, bundle: ReleaseBundle) -> None:
    await asyncio.to_thread(ReleasePublisher(settings).publish, bundle, RELEASE_STATE_LIVE, "test")


async def test_the_generator_from_start_to_swap(settings: Settings, tmp_path: Path) -> None:
    async with serving("generator", serve, settings) as connection:
        stub = GeneratorServiceStub(connection)
        assert await health(connection, "liveness") == SERVING
        assert await health(connection) != SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(GenerateRequest(num_candidates=5))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        first = make_release("gen-1")
        await publish(settings, first)
        await ready(connection)
        await check_answers(stub)
        await check_refused_requests(stub)
        await check_live_item(stub, settings)
        await check_corrupt_release(stub, settings, tmp_path)

        await publish(settings, make_release("gen-3", parent="gen-1", seed=3))

        async def swapped() -> bool:
            return (await stub.Generate(GenerateRequest(num_candidates=5))).release_id == "gen-3"

        await until(swapped)
        # the new release was cut without the item that was announced meanwhile
        assert "fresh" in item_ids(await stub.Generate(GenerateRequest(num_candidates=100, beam=100)))


def item_ids(response: GenerateResponse) -> list[str]:
    return list(response.candidates.item_ids)


async def check_answers(stub: GeneratorServiceStub) -> None:
    request = GenerateRequest(
        history=make_history(1, 2, 777), num_candidates=10, exclude_item_ids=["item-4", "item-5"]
    )
    response = await stub.Generate(request)
    found = item_ids(response)
    assert response.release_id == "gen-1"
    assert response.num_known_events == 2
    assert len(found) == len(set(found)) >= 10
    assert {"item-4", "item-5"}.isdisjoint(found)
    assert set(found) <= {f"item-{n}" for n in range(50)}
    scored = zip(response.candidates.source_masks, response.candidates.beam_scores, strict=True)
    beams = [score for mask, score in scored if CANDIDATE_SOURCE_BEAM in sources_of(mask)]
    assert len(beams) == 10
    assert beams == sorted(beams, reverse=True)
    request.disabled_sources.append(CANDIDATE_SOURCE_DENSE)
    assert len(item_ids(await stub.Generate(request))) == 10
    # all of a catalogue of 50, and no more
    everything = item_ids(await stub.Generate(GenerateRequest(num_candidates=512, beam=512)))
    assert sorted(everything) == sorted(f"item-{n}" for n in range(50))


async def check_refused_requests(stub: GeneratorServiceStub) -> None:
    request = GenerateRequest(num_candidates=513, history=make_history(1), exclude_item_ids=[""])
    request.history[0].action = 99  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(caught.value) == ["num_candidates", "history[0].action", "exclude_item_ids[0]"]


async def check_live_item(stub: GeneratorServiceStub, settings: Settings) -> None:
    content_E = make_content(1, seed=42)[0]
    index = make_catalogue()
    codes = index.assign(content_E)
    sid = item_sid(
        Item(item_id="fresh"), codes, content_E, index.codebook.version, announced_time_ms=1_700_000_000_000
    )
    await asyncio.to_thread(send, settings, SEMANTIC_IDS, ("fresh", sid))

    async def is_proposed() -> bool:
        return "fresh" in item_ids(await stub.Generate(GenerateRequest(num_candidates=100, beam=100)))

    await until(is_proposed)


async def check_corrupt_release(stub: GeneratorServiceStub, settings: Settings, tmp_path: Path) -> None:
    refused = RELEASE_SWAPS.labels("refused", "checksum")
    before = refused._value.get()
    publisher = ReleasePublisher(settings)
    await asyncio.to_thread(publisher._store.save, make_release("gen-2", seed=2))
    weights = tmp_path / "releases" / "gen-2" / "recommender.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(damaged)
    record = list(await asyncio.to_thread(publisher.list))[-1]
    record.release_id, record.state = "gen-2", RELEASE_STATE_LIVE
    await asyncio.to_thread(send, settings, "releases", ("gen-2", record))

    async def is_refused() -> bool:
        return refused._value.get() > before

    await until(is_refused)
    assert (await stub.Generate(GenerateRequest(num_candidates=5))).release_id == "gen-1"
