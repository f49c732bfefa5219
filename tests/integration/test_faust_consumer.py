"""What faust fetches while it recovers its tables is handed over afterwards, on a real broker."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalStateError
from faust.tables.recovery import Recovery

from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from protos.headrace.v1.trends_pb2 import Trend
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.follow import read_to_end
from streaming.clients.topic_admin import create_topics
from streaming.messages.codec import encode
from streaming.messages.meaning import EventMeaning
from streaming.messages.topics import INTERACTIONS, TRENDS
from streaming.trends.faust_consumer import Consumer
from streaming.trends.worker import TrendsWorker
from tests.conftest import find_free_port

pytestmark = pytest.mark.integration

NUM_PARTITIONS = 4
PATIENCE_S = 30.0
# longer than a broker needs to hand an event to a fetch that waits
WINDOW_S = 0.3


async def send_one_a_partition(bootstrap: str) -> set[str]:
    """The items of the events sent."""
    item_ids = []
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for partition in range(NUM_PARTITIONS):
            item_ids.append(f"item-{uuid.uuid4().hex}")
            event = Event(
                event_id=uuid.uuid4().hex,
                user_id="u",
                item_id=item_ids[-1],
                action=ACTION_CLICK,
                event_time_ms=time.time_ns() // 1_000_000 - 60_000,
            )
            await producer.send_and_wait(INTERACTIONS, encode(event), partition=partition)
    return set(item_ids)


async def expect_counted(bootstrap: str, item_ids: set[str]) -> None:
    missing = item_ids
    until_s = time.monotonic() + PATIENCE_S
    while missing and time.monotonic() < until_s:
        await asyncio.sleep(0.3)
        records = await asyncio.to_thread(read_to_end, bootstrap, TRENDS, timeout_s=PATIENCE_S)
        missing = item_ids - {record.message.item_id for record in records}
    assert not missing, "faust passed events over"


def rejoin(consumer: Any) -> None:
    """As after a broker's restart; aiokafka runs in a thread of faust's."""
    thread = consumer._thread
    thread.thread_loop.call_soon_threadsafe(thread._ensure_consumer()._coordinator.request_rejoin)


@asynccontextmanager
async def running(bootstrap: str, folder: Path) -> AsyncIterator[None]:
    ready = asyncio.Event()
    worker = TrendsWorker(
        bootstrap, folder, meaning=EventMeaning(), on_ready=ready.set, on_batch=lambda batch: None
    )
    task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("when", ["at the start", "in a rebalance"])
async def test_no_event_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    complete = Recovery.on_recovery_completed
    sent: set[str] = set()
    was_sent = asyncio.Event()
    consumers: list[Any] = []

    async def note(self: Any, generation_id: int = 0) -> None:
        consumers.append(self.app.consumer)
        await complete(self, generation_id)

    async def send_then_complete(self: Any, generation_id: int = 0) -> None:
        sent.update(await send_one_a_partition(bootstrap))
        was_sent.set()
        await asyncio.sleep(WINDOW_S)
        await complete(self, generation_id)

    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{find_free_port()}") as broker:
        bootstrap = broker.bootstrap
        create_topics(bootstrap, num_partitions=NUM_PARTITIONS, replication_factor=1)
        # something to recover
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            await producer.send_and_wait(TRENDS, encode(Trend(item_id="old")), key=b"old")
        first = send_then_complete if when == "at the start" else note
        monkeypatch.setattr(Recovery, "on_recovery_completed", first)
        async with running(bootstrap, tmp_path / "faust"):
            if when == "in a rebalance":
                monkeypatch.setattr(Recovery, "on_recovery_completed", send_then_complete)
                rejoin(consumers[0])
            async with asyncio.timeout(PATIENCE_S):
                await was_sent.wait()
            await expect_counted(bootstrap, sent)


async def test_a_seek_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seek = Consumer.seek_to_committed
    num_calls = 0

    async def fail_at_first(self: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        # the first is faust's own, at the end of the recovery
        if num_calls in (2, 3):
            raise IllegalStateError("a rebalance has begun")
        return await seek(self)

    monkeypatch.setattr(Consumer, "seek_to_committed", fail_at_first)
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{find_free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=NUM_PARTITIONS, replication_factor=1)
        sent = await send_one_a_partition(broker.bootstrap)
        async with running(broker.bootstrap, tmp_path / "faust"):
            await expect_counted(broker.bootstrap, sent)
    assert num_calls >= 4
