"""An idle consumer leaves the broker, and the machine, alone."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaClient

from protos.headrace.v1.items_pb2 import Item
from streaming.clients.follow import follow
from streaming.clients.producer import AsyncProducer
from streaming.messages.records import Record
from streaming.messages.topics import ITEMS
from tests.integration.serving import own_broker

pytestmark = pytest.mark.integration


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    with own_broker(tmp_path) as address:
        yield address


async def test_idle_consumers_ask_seldom_and_get_records_at_once(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_requests = 0
    original = AIOKafkaClient.send

    async def counted(self: AIOKafkaClient, *args: Any, **kwargs: Any) -> Any:
        nonlocal num_requests
        num_requests += 1
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(AIOKafkaClient, "send", counted)
    caught_up, arrived = asyncio.Event(), asyncio.Event()

    async def take(records: list[Record]) -> None:
        arrived.set()

    reading = asyncio.create_task(follow(bootstrap, ITEMS, take, on_caught_up=caught_up.set))
    await caught_up.wait()
    num_requests = 0
    await asyncio.sleep(3.0)
    assert num_requests <= 4
    async with AsyncProducer(bootstrap) as producer:
        await producer.send(ITEMS, "first", Item(item_id="first"))
        await arrived.wait()
        arrived.clear()
        started = time.monotonic()
        await producer.send(ITEMS, "second", Item(item_id="second"))
        await arrived.wait()
    assert time.monotonic() - started < 1.0
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
