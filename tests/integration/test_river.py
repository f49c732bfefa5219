"""The whole river on Apache Kafka: events in, a release out, recommendations that changed because of them.

Every service runs as its own process and everything goes over real sockets; `kcat` and `buf curl` stand
for the producers and clients that are not ours.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc, recommend_pb2, recommend_pb2_grpc
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Item
from services.learner.cold_start.train import train_first_release
from services.settings import Settings
from services.stack.supervisor import Stack
from streaming.clients.dead_letter import list_dead_letters
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import INTERACTIONS, ITEMS
from tests.conftest import kafka_in_container
from tests.integration.learner_world import World, make_world, small_settings

pytestmark = pytest.mark.container

NUM_PAST, NUM_LIVE = 600, 2_400
PATIENCE_S = 120.0
USER = "user-1"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A small model and frequent releases, on an Apache Kafka of this test's own."""
    with kafka_in_container() as bootstrap:
        create_topics(bootstrap, num_partitions=2, replication_factor=1)
        yield small_settings(bootstrap, tmp_path, release_interval_events=600)


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What `condition` returns once it is true; fails the test after two minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if result := await condition():
            return result
        await asyncio.sleep(0.1)
    pytest.fail(f"not within {PATIENCE_S:.0f} s: {what}")


def write_past(settings: Settings, world: World) -> None:
    """Items and past events into the topics, and a first release learned from the same events."""
    with Producer(settings.broker.bootstrap_servers) as producer:
        for item in world.items:
            producer.send(ITEMS, item.item_id, item)
        for event in world.events[:NUM_PAST]:
            producer.send(INTERACTIONS, event.user_id, event)
        producer.flush()
    train_first_release(
        settings,
        world.items,
        world.events[:NUM_PAST],
        offsets={},
        progress=lambda *report: None,
    )


async def test_events_in_release_out_recommendation_changed(settings: Settings) -> None:
    world = make_world(NUM_PAST + NUM_LIVE)
    await asyncio.to_thread(write_past, settings, world)
    async with (
        Stack(settings, embedded_broker=False) as stack,
        grpc.aio.insecure_channel(settings.endpoints.address("gateway")) as gateway,
        grpc.aio.insecure_channel(settings.endpoints.address("learner")) as learner,
    ):
        await stack.wait_ready()
        stub = recommend_pb2_grpc.RecommenderServiceStub(gateway)
        known = {item.item_id for item in world.items}
        first = await check_answer(stub, known)
        await check_event_changes_answer(stub, first, known)
        await check_new_item(stub, world.items[0])
        await check_releases(
            stub, learner_pb2_grpc.LearnerServiceStub(learner), settings, world, first.release_id
        )
        await check_foreign_producer(learner_pb2_grpc.LearnerServiceStub(learner), settings)
        await asyncio.to_thread(check_foreign_client, settings)


async def check_answer(stub: Any, known: set[str]) -> recommend_pb2.RecommendResponse:
    """Ten distinct known items, made by the one release that the answer names."""

    async def answer() -> recommend_pb2.RecommendResponse | None:
        response = await stub.Recommend(recommend_pb2.RecommendRequest(user_id=USER, k=10), timeout=10)
        return None if response.fallback_reason else response

    response: recommend_pb2.RecommendResponse = await until(answer, "an answer made by the model")
    item_ids = [item.item_id for item in response.recommendations]
    assert len(set(item_ids)) == 10
    assert set(item_ids) <= known
    assert response.release_id
    return response


async def check_event_changes_answer(
    stub: Any, before: recommend_pb2.RecommendResponse, known: set[str]
) -> None:
    """An item that was just chosen is seen, and the answer goes on without it."""
    chosen = before.recommendations[0].item_id
    event = Event(user_id=USER, item_id=chosen, action=Action.ACTION_CLICK)
    await stub.Track(recommend_pb2.TrackRequest(event=event), timeout=10)

    async def changed() -> bool:
        after = await check_answer(stub, known)
        return chosen not in {item.item_id for item in after.recommendations}

    await until(changed, "the tracked event in the answer")


async def check_new_item(stub: Any, like: Item) -> None:
    """An item announced now is recommended to somebody who chose its like."""
    item = Item(item_id="item-new", title="new thing", embeddings=like.embeddings)
    await stub.UpsertItems(recommend_pb2.UpsertItemsRequest(items=[item]), timeout=10)

    async def recommended() -> bool:
        request = recommend_pb2.RecommendRequest(user_id="user-0", k=50)
        response = await stub.Recommend(request, timeout=10)
        return "item-new" in {answer.item_id for answer in response.recommendations}

    await until(recommended, "the new item in an answer")


async def check_releases(stub: Any, learner: Any, settings: Settings, world: World, first: str) -> None:
    """The live events are learned once each, and a release cut from them serves."""
    with Producer(settings.broker.bootstrap_servers) as producer:
        for event in world.events[NUM_PAST:]:
            producer.send(INTERACTIONS, event.user_id, event)
        producer.flush()

    async def learned() -> bool:
        status = await learner.Status(learner_pb2.StatusRequest(), timeout=10)
        return bool(status.num_events_learned >= NUM_PAST + NUM_LIVE)

    await until(learned, "all live events learned")

    async def swapped() -> bool:
        response = await stub.Recommend(recommend_pb2.RecommendRequest(user_id=USER, k=10), timeout=10)
        return bool(response.release_id != first)

    await until(swapped, "a release of the learner in an answer")


async def check_foreign_producer(learner: Any, settings: Settings) -> None:
    """JSON written with kcat is learned; what is broken goes to the dead letters with its reason."""
    before = await learner.Status(learner_pb2.StatusRequest(), timeout=10)
    good = {
        "event_id": "from-kcat",
        "user_id": USER,
        "item_id": "item-3",
        "action": "ACTION_LIKE",
        "event_time_ms": int(time.time() * 1000),
    }
    for value in (json.dumps(good), '{"event_id": "broken", "user_id": 7'):
        await asyncio.to_thread(kcat, settings, value)

    async def learned() -> bool:
        status = await learner.Status(learner_pb2.StatusRequest(), timeout=10)
        return bool(status.num_events_learned > before.num_events_learned)

    await until(learned, "the event from kcat learned")

    async def rejected() -> list[Any]:
        letters = await asyncio.to_thread(list_dead_letters, settings.broker.bootstrap_servers, INTERACTIONS)
        return [letter for letter in letters if letter.reason == "not_json"]

    await until(rejected, "the broken record among the dead letters")


def kcat(settings: Settings, value: str) -> None:
    """Writes one JSON value to `interactions`, as any producer may."""
    program = shutil.which("kcat")
    if program is None:
        pytest.fail("this test needs kcat (Debian: apt-get install kcat)", pytrace=False)
    target = ["-b", settings.broker.bootstrap_servers, "-t", INTERACTIONS, "-k", USER]
    subprocess.run(
        [program, "-P", *target, "-H", "content-type=application/json"],
        input=value.encode(),
        check=True,
        timeout=30,
    )


def check_foreign_client(settings: Settings) -> None:
    """`buf curl` finds the services by reflection, gets an answer, and hears which field is wrong."""
    listed = buf_curl(settings, "--list-methods")
    assert "headrace.v1.RecommenderService/Recommend" in listed.stdout
    method = "headrace.v1.RecommenderService/Recommend"
    answer = buf_curl(settings, "--data", json.dumps({"user_id": USER, "k": 5}), method=method)
    item_ids = [item["itemId"] for item in json.loads(answer.stdout)["recommendations"]]
    assert len(set(item_ids)) == 5
    refused = buf_curl(settings, "--data", json.dumps({"user_id": USER, "k": -1}), method=method)
    assert refused.returncode
    error = json.loads(refused.stderr)
    assert error["code"] == "invalid_argument"
    [detail] = error["details"]
    assert detail["type"] == "google.rpc.BadRequest"
    violations = error_details_pb2.BadRequest.FromString(b64decode(detail["value"] + "==")).field_violations
    assert [violation.field for violation in violations] == ["k"]
    assert error["message"].startswith("k: ")


def buf_curl(settings: Settings, *arguments: str, method: str = "") -> "subprocess.CompletedProcess[str]":
    """`buf curl` against the gateway, its schema learned by reflection."""
    program = str(Path(sys.executable).with_name("buf"))
    url = f"http://{settings.endpoints.address('gateway')}/{method}".rstrip("/")
    return subprocess.run(
        [program, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
