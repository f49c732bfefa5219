"""The trends service as a process on a real broker: counts, ignores, survives kill -9, stops on SIGTERM."""

import asyncio
import contextlib
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kafka import KafkaAdminClient, TopicPartition

from protos.headrace.v1.events_pb2 import ACTION_CLICK, ACTION_IMPRESSION, Event
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.producer import AsyncProducer
from streaming.clients.topic_admin import create_topics
from streaming.errors import MalformedEvent
from streaming.messages.codec import decode
from streaming.messages.topics import INTERACTIONS, TRENDS
from streaming.trends.counting import TrendsView

REPOSITORY = Path(__file__).parents[2]
TIME_MS = 1_700_000_000_000
DEADLINE_S = 40.0


class Service:
    """`python -m services.trends` as a child, on ports and a folder of its own."""

    def __init__(self, bootstrap: str, root: Path, port: int) -> None:
        self._port = port
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
            "HEADRACE_BROKER__BOOTSTRAP_SERVERS": bootstrap,
            "HEADRACE_STORE__ROOT": str(root),
            "HEADRACE_ENDPOINTS__TRENDS": str(port),
            "HEADRACE_LOG_LEVEL": "WARNING",
        }
        self.log_path = root / "trends.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.trends",
                cwd=REPOSITORY,
                env=self._environment,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
            )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            request = health_pb2.HealthCheckRequest()
            for _ in range(int(DEADLINE_S * 5)):
                assert self.process.returncode is None, self.log_path.read_text()
                try:
                    answer = await stub.Check(request, wait_for_ready=True, timeout=5.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.aio.AioRpcError:
                    continue
                await asyncio.sleep(0.2)
        pytest.fail(f"not ready within {DEADLINE_S} s: {self.log_path.read_text()}")

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(20.0):
            return await self.process.wait()


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    """Starts it; kills what is left of it at the end."""
    try:
        await service.start()
        yield service
    finally:
        if service.process is not None and service.process.returncode is None:
            await service.end(signal.SIGKILL)


async def read_until(view: TrendsView, bootstrap: str, done: Callable[[], bool]) -> int:
    """Follows `trends` from its beginning into the view until `done`; returns how many records it took."""
    consumer = AIOKafkaConsumer(TRENDS, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    num_records = 0
    try:
        end_s = time.monotonic() + DEADLINE_S
        while not done() and time.monotonic() < end_s:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    with contextlib.suppress(MalformedEvent):
                        view.apply(decode(TRENDS, record.value))
                    num_records += 1
    finally:
        await consumer.stop()
    return num_records


class Traffic:
    """Sends clicks on items of its own and keeps the obvious counts."""

    def __init__(self, producer: AsyncProducer) -> None:
        self._producer = producer
        self.tag = uuid.uuid4().hex[:8]
        self.num_sent = 0
        self.total = Counter[str]()

    async def send(self, num_events: int) -> None:
        pairs = []
        for _ in range(num_events):
            item_id = f"{self.tag}-{self.num_sent % 37 % 11}"
            self.total[item_id] += 1
            event = Event(
                event_id=f"{self.tag}-e{self.num_sent}",
                user_id=f"u{self.num_sent}",
                item_id=item_id,
                action=ACTION_CLICK,
                event_time_ms=TIME_MS + self.num_sent,
            )
            pairs.append((event.user_id, event))
            self.num_sent += 1
        await self._producer.send_many(INTERACTIONS, pairs)

    def counted(self, view: TrendsView) -> dict[str, int]:
        trends = ((item_id, view.get(item_id)) for item_id in self.total)
        return {item_id: trend.num_events_total for item_id, trend in trends if trend is not None}


async def expect(traffic: Traffic, bootstrap: str) -> TrendsView:
    """Waits until the topic says what was sent; then nothing may be counted on top of it."""
    view = TrendsView()
    await read_until(view, bootstrap, lambda: sum(traffic.counted(view).values()) >= traffic.num_sent)
    assert traffic.counted(view) == dict(traffic.total)
    return view


@pytest.fixture
def service(broker: str, tmp_path: Path, free_port: Callable[[], int]) -> Service:
    create_topics(broker, num_partitions=4, replication_factor=1)
    return Service(broker, tmp_path, free_port())


async def test_counts_survive_kill_and_restart(broker: str, service: Service) -> None:
    async with AsyncProducer(broker) as producer:
        traffic = Traffic(producer)
        async with running(service):
            await traffic.send(500)
            view = await expect(traffic, broker)
            best = next(trend for trend in view.top(len(view)) if trend.item_id in traffic.total)
            assert best.num_events_total == max(traffic.total.values())
            # as it comes: anywhere in reading, publishing or committing
            await traffic.send(3_000)
            await asyncio.sleep(0.3)
            assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        await traffic.send(200)
        async with running(service):
            await expect(traffic, broker)
            assert await service.end(signal.SIGTERM) == 0
        await traffic.send(100)
        async with running(service):
            await expect(traffic, broker)


async def test_strange_records_do_not_stall_it(broker: str, service: Service) -> None:
    tag = uuid.uuid4().hex[:8]
    client = AIOKafkaProducer(bootstrap_servers=broker)
    await client.start()
    try:
        shown = Event(
            event_id=f"{tag}-1", user_id="u", item_id=tag, action=ACTION_IMPRESSION, event_time_ms=TIME_MS
        )
        click = (
            f'{{"eventId": "{tag}-2", "userId": "u", "itemId": "{tag}", "action": "ACTION_CLICK", '
            f'"eventTimeMs": "{TIME_MS}"}}'
        )
        for value in (b"\xff\xff", b"{", None, shown.SerializeToString(), click.encode(), click.encode()):
            await client.send_and_wait(INTERACTIONS, value, key=b"u")
    finally:
        await client.stop()
    async with running(service), AsyncProducer(broker) as producer:
        traffic = Traffic(producer)
        await traffic.send(50)
        view = await expect(traffic, broker)
        trend = view.get(tag)
        assert trend is not None
        assert trend.num_events_total == 1  # one click sent twice, one impression
        assert await service.end(signal.SIGTERM) == 0
    assert "Traceback" not in service.log_path.read_text()


@pytest.mark.integration
@pytest.mark.case("`delete_records` on the trends changelog, restart; `interactions` made anew")
async def test_counts_go_on_where_topics_were_cut_or_made_anew(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=4, replication_factor=1)
        service = Service(broker.bootstrap, tmp_path, free_port())
        async with AsyncProducer(broker.bootstrap) as producer:
            first = Traffic(producer)
            async with running(service):
                await first.send(300)
                await expect(first, broker.bootstrap)
                assert await service.end(signal.SIGTERM) == 0
            await asyncio.to_thread(cut_trends, broker.bootstrap)
            afresh = Traffic(producer)
            async with running(service):
                await afresh.send(100)
                await expect(afresh, broker.bootstrap)
                assert await service.end(signal.SIGTERM) == 0
            await asyncio.to_thread(make_anew, broker.bootstrap, INTERACTIONS)
        async with AsyncProducer(broker.bootstrap) as producer, running(service):
            anew = Traffic(producer)
            anew.tag = afresh.tag  # the same items: their offsets were counted in the topic that is gone
            for number in range(afresh.num_sent):
                anew.total[f"{anew.tag}-{number % 37 % 11}"] += 1
            anew.num_sent = afresh.num_sent
            await anew.send(100)
            await expect(anew, broker.bootstrap)


@pytest.mark.integration
async def test_it_ends_where_the_broker_is_gone(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with contextlib.ExitStack() as until_gone:
        broker = until_gone.enter_context(EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}"))
        create_topics(broker.bootstrap, num_partitions=4, replication_factor=1)
        service = Service(broker.bootstrap, tmp_path, free_port())
        async with running(service):
            await asyncio.to_thread(until_gone.close)
            await asyncio.sleep(3.0)  # its connections are lost, and it tries again
            assert await service.end(signal.SIGTERM) == 0


def cut_trends(bootstrap: str) -> None:
    """Deletes all records of the changelog."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.delete_records({TopicPartition(TRENDS, partition): -1 for partition in range(4)})
    admin.close()


def make_anew(bootstrap: str, topic: str) -> None:
    """Deletes a topic and makes it again."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.delete_topics([topic])
    admin.close()
    create_topics(bootstrap, num_partitions=4, replication_factor=1)


async def test_a_spoilt_trend_is_counted_afresh(
    broker: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    await asyncio.to_thread(create_topics, broker, num_partitions=1, replication_factor=1)
    spoilt = {
        f"{uuid.uuid4().hex}-{n}": value for n, value in enumerate((b"\xff\xff\xff", b"{}", b"", b"\x0a"))
    }
    async with AIOKafkaProducer(bootstrap_servers=broker) as raw:
        for item_id, value in spoilt.items():
            await raw.send_and_wait(TRENDS, value, key=item_id.encode())
    view = TrendsView()
    async with running(Service(broker, tmp_path, free_port())), AsyncProducer(broker) as producer:
        for n, item_id in enumerate(spoilt):
            event = Event(
                event_id=f"{item_id}-{n}",
                user_id="u",
                item_id=item_id,
                action=ACTION_CLICK,
                event_time_ms=TIME_MS,
            )
            await producer.send(INTERACTIONS, "u", event)
        await read_until(view, broker, lambda: all(view.get(item_id) for item_id in spoilt))
    assert [trend.num_events_total for item_id in spoilt if (trend := view.get(item_id))] == [1] * len(spoilt)
