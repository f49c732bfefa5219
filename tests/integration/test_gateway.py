"""The gateway on the embedded broker and real channels, with nothing behind it: fallbacks and intake."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import (
    ExplainRequest,
    FallbackReason,
    GetUserRequest,
    RecommendationLog,
    RecommendRequest,
    RecommendResponse,
    RecommendStreamRequest,
    ShortfallReason,
    TrackRequest,
    TrackStreamRequest,
    UpsertItemsRequest,
)
from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub
from services.gateway.__main__ import make_server, serve
from services.rpc.server import LIVENESS
from services.settings import (
    BrokerSettings,
    EndpointSettings,
    GatewaySettings,
    Settings,
    StoreSettings,
    to_environment,
)
from services.stack.embedded_broker import EmbeddedBroker
from services.stack.supervisor import is_serving
from streaming.clients.tail import tail
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import RECOMMENDATIONS

pytestmark = pytest.mark.integration

CODE = grpc.StatusCode


@pytest.fixture
def settings(embedded_broker: str, free_port: Callable[[], int], tmp_path: Path) -> Settings:
    create_topics(embedded_broker, num_partitions=4, replication_factor=1)
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "projector", "trends", "console")
    return Settings(
        broker=BrokerSettings(bootstrap_servers=embedded_broker),
        store=StoreSettings(root=tmp_path),
        endpoints=EndpointSettings(**{name: free_port() for name in names}),
        gateway=GatewaySettings(track_deadline_s=2.0),
    )


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[RecommenderServiceStub]:
    """A running gateway that is ready, and a stub for it."""
    server = make_server(settings)
    running = asyncio.create_task(serve(settings, server))
    try:
        async with grpc.aio.insecure_channel(settings.endpoints.address("gateway")) as channel:
            await wait_ready(settings)
            yield RecommenderServiceStub(channel)
    finally:
        server.request_stop()
        await running


async def wait_ready(settings: Settings) -> None:
    url = f"http://{settings.endpoints.host}:{settings.endpoints.console}/healthz"
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition, for at most ten seconds."""
    for _ in range(200):
        if await holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{holds.__name__} does not hold after 10 s")


@asynccontextmanager
async def projector(settings: Settings) -> AsyncIterator[None]:
    """The projector as a process of its own: only one environment of a store may be open in each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.projector", env=os.environ | to_environment(settings)
    )

    async def is_up() -> bool:
        return await is_serving(settings.endpoints.address("projector"), LIVENESS)

    try:
        await eventually(is_up)
        yield
    finally:
        process.terminate()
        assert await process.wait() == 0


@pytest.fixture
def category() -> str:
    """The broker is shared with other tests: the items of one test are those of its category."""
    return uuid.uuid4().hex


async def announce(stub: RecommenderServiceStub, category: str, num_items: int) -> list[str]:
    """Announces items, waits until the gateway knows them, and returns their ids, the newest first."""
    items = [
        Item(
            item_id=f"{category}-{n}",
            title=f"Item {n}",
            categories=[category],
            announced_time_ms=1_600_000_000_000 + n,
        )
        for n in range(num_items)
    ]
    assert (await stub.UpsertItems(UpsertItemsRequest(items=items))).num_accepted == num_items
    ask = RecommendRequest(user_id="stranger", k=100, categories=[category])

    async def all_known() -> bool:
        return len((await stub.Recommend(ask)).recommendations) == num_items

    await eventually(all_known)
    return [item.item_id for item in reversed(items)]


def click(user_id: str, item_id: str, **fields: object) -> Event:
    return Event(user_id=user_id, item_id=item_id, action=Action.ACTION_CLICK, **fields)  # type: ignore[arg-type]


def ids(response: RecommendResponse) -> list[str]:
    return [item.item_id for item in response.recommendations]


def fields_of(error: grpc.aio.AioRpcError) -> list[str]:
    assert error.code() == CODE.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    assert status is not None
    bad_request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad_request)
    return [violation.field for violation in bad_request.field_violations]


async def test_an_unknown_user_gets_a_fallback_that_says_so(settings: Settings, category: str) -> None:
    async with gateway(settings) as stub:
        newest = await announce(stub, category, 5)
        ask = RecommendRequest(user_id="stranger", k=3, categories=[category], request_id=category)
        response = await stub.Recommend(ask)
        assert ids(response) == newest[:3]
        assert response.recommendations[0].title == "Item 4"
        assert response.fallback_reason == FallbackReason.FALLBACK_REASON_UNKNOWN_USER
        assert (response.release_id, response.degraded, response.request_id) == ("", False, category)
        withdrawn = Item(item_id=newest[0], categories=[category], unavailable=True)
        await stub.UpsertItems(UpsertItemsRequest(items=[withdrawn]))

        async def is_gone() -> bool:
            return newest[0] not in ids(await stub.Recommend(ask))

        await eventually(is_gone)
        rest = await stub.Recommend(RecommendRequest(user_id="stranger", k=9, categories=[category]))
        assert ids(rest) == newest[1:]
        assert rest.shortfall_reason != ShortfallReason.SHORTFALL_REASON_UNSPECIFIED
    assert await logged(settings, category) == newest[:3]


async def logged(settings: Settings, request_id: str) -> list[str]:
    """The items that the recommendation log has for a request."""
    records = tail(settings.broker.bootstrap_servers, [RECOMMENDATIONS])
    async with asyncio.timeout(10), aclosing(records):  # type: ignore[type-var]
        async for record in records:
            if record.key == request_id:
                assert isinstance(record.message, RecommendationLog)
                return [item.item_id for item in record.message.recommendations]
    raise AssertionError("unreachable")


async def test_a_malformed_request_names_its_fields(settings: Settings) -> None:
    async with gateway(settings) as stub:
        calls = [
            (stub.Recommend(RecommendRequest(k=-1)), ["user_id", "k"]),
            (stub.Track(TrackRequest(event=Event(user_id="u", item_id="i"))), ["event.action"]),
            (stub.Track(TrackRequest()), ["event.user_id", "event.item_id", "event.action"]),
            (
                stub.UpsertItems(UpsertItemsRequest(items=[Item(item_id="a"), Item()])),
                ["items[1].item_id"],
            ),
            (stub.GetUser(GetUserRequest(user_id="u", limit=-1)), ["limit"]),
            (stub.Explain(ExplainRequest(user_id="u")), ["item_id"]),
        ]
        for call, fields in calls:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert fields_of(error.value) == fields
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in stub.RecommendStream(RecommendStreamRequest()):
                pass
        assert fields_of(error.value) == ["request.user_id"]


async def test_a_tracked_event_becomes_history_and_changes_the_answer(
    settings: Settings, category: str
) -> None:
    user_id = f"user-{category}"
    async with projector(settings), gateway(settings) as stub:
        newest = await announce(stub, category, 6)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetUser(GetUserRequest(user_id=user_id))
        assert error.value.code() == CODE.NOT_FOUND
        request = RecommendRequest(user_id=user_id, k=3, categories=[category])
        answers = stub.RecommendStream(RecommendStreamRequest(request=request))
        assert ids((await answers.read()).response) == newest[:3]

        event_id = (await stub.Track(TrackRequest(event=click(user_id, newest[1])))).event_id
        assert event_id
        async with asyncio.timeout(10):
            changed = (await answers.read()).response
        answers.cancel()
        assert ids(changed) == [newest[0], newest[2], newest[3]]
        # a known user, but no model: popularity answers, and says why
        assert changed.fallback_reason == FallbackReason.FALLBACK_REASON_NO_RELEASE
        assert changed.degraded

        user = await stub.GetUser(GetUserRequest(user_id=user_id))
        assert (user.num_events, [event.item_id for event in user.events]) == (1, [newest[1]])
        seen = await stub.Recommend(
            RecommendRequest(user_id=user_id, k=3, categories=[category], include_seen=True)
        )
        assert ids(seen) == newest[:3]


async def test_a_stream_of_events_is_counted(settings: Settings, category: str) -> None:
    def event(n: int) -> Event:
        return click(category, "" if n % 100 == 7 else "i", event_id=f"{category}-{n}")

    async def events() -> AsyncIterator[TrackStreamRequest]:
        for n in range(500):
            yield TrackStreamRequest(event=event(n))
        for n in range(500, 1_500, 100):
            yield TrackStreamRequest(events=map(event, range(n, n + 100)))
        yield TrackStreamRequest(event=event(1_500), events=map(event, range(1_501, 2_000)))

    async with projector(settings), gateway(settings) as stub:
        answer = await stub.TrackStream(events())
        assert (answer.num_accepted, answer.num_rejected) == (1_980, 20)
        assert [rejected.index for rejected in answer.rejected[:2]] == [7, 107]
        assert answer.rejected[0].field == "item_id"

        async def all_projected() -> bool:
            try:
                return (await stub.GetUser(GetUserRequest(user_id=category))).num_events == 1_980
            except grpc.aio.AioRpcError as error:
                if error.code() != CODE.NOT_FOUND:
                    raise
                return False

        await eventually(all_projected)


async def test_answers_go_on_without_the_broker(
    settings: Settings, free_port: Callable[[], int], tmp_path: Path, category: str
) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}")
    broker.start()
    try:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        own = settings.model_copy(update={"broker": BrokerSettings(bootstrap_servers=broker.bootstrap)})
        async with gateway(own) as stub:
            newest = await announce(stub, category, 3)
            broker.stop()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Track(TrackRequest(event=click("u", newest[0])))
            assert error.value.code() == CODE.UNAVAILABLE
            ask = RecommendRequest(user_id="stranger", k=3, categories=[category])
            assert ids(await stub.Recommend(ask)) == newest
    finally:
        broker.stop()


async def test_the_console_serves_its_page_and_the_same_answers(settings: Settings, category: str) -> None:
    base = f"http://{settings.endpoints.host}:{settings.endpoints.console}"
    async with gateway(settings) as stub, aiohttp.ClientSession(base) as session:
        newest = await announce(stub, category, 3)
        for path in ("/", "/console.css", "/console.js"):
            async with session.get(path) as page:
                assert page.status == 200
                assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        async with session.get("/api/status") as page:
            status = await page.json()
        assert status["ready"]
        assert status["num_available"] >= 3
        assert status["stages"]["total"]["p99_ms"] > 0
        assert status["learner"] is None
        async with session.get("/api/recommend", params={"user_id": "stranger", "k": "2"}) as page:
            answer = await page.json()
        assert len(answer["recommendations"]) == 2
        assert answer["fallback_reason"] == "FALLBACK_REASON_UNKNOWN_USER"
        async with session.get("/api/recommend", params={"user_id": "", "k": "2"}) as page:
            assert page.status == 400
            assert "user_id" in (await page.json())["error"]
        async with session.get("/api/recommend", params={"user_id": "u", "k": "two"}) as page:
            assert page.status == 400
        async with session.get("/api/user", params={"user_id": "stranger"}) as page:
            assert page.status == 404
        event = {"user_id": category, "item_id": newest[0], "action": "ACTION_LIKE"}
        async with session.post("/api/track", json=event) as page:
            assert page.status == 200
            assert (await page.json())["event_id"]
        async with session.post("/api/track", json={"user": 1}) as page:
            assert page.status == 400
        async with session.post("/api/track", data=b"{}") as page:
            assert page.status == 415
