"""Events and raw records to write, and the readers that take all of a topic."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from protos.headrace.v1.events_pb2 import Action, Event
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.clients.follow import read_to_end
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS

PATIENCE_S = 60
Headers = Sequence[tuple[str, bytes | None]]


def make_event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "event_id": uuid.uuid4().hex,
        "user_id": f"user-{uuid.uuid4().hex[:8]}",
        "item_id": f"item-{uuid.uuid4().hex[:8]}",
        "action": Action.ACTION_CLICK,
        "event_time_ms": time.time_ns() // 1_000_000 - 60_000,
    }
    return Event(**(fields | changes))


def as_json(event: Event) -> bytes:
    return json.dumps(
        {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "action": "ACTION_CLICK",
            "event_time_ms": event.event_time_ms,
        }
    ).encode()


async def write(
    bootstrap: str, topic: str, records: Sequence[tuple[bytes | None, bytes | None, Headers]]
) -> None:
    """Writes (key, value, headers) with aiokafka, which takes null headers."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for key, value, headers in records:
            await producer.send_and_wait(topic, value, key=key, headers=list(headers))


def polled(bootstrap: str, topic: str = INTERACTIONS) -> list[Record]:
    """All that kafka-python's reader takes, from the beginning to the end."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    letters = DeadLetters(bootstrap, stage="test")
    with PartitionConsumer(bootstrap, [topic], offsets={}, dead_letters=letters, stage="test") as consumer:
        while sum(consumer.lag().values()):
            assert time.monotonic() < deadline, "the end was not reached"
            records += consumer.poll(500, 0.2)
    letters.close()
    return records


def tailed(bootstrap: str, topic: str = INTERACTIONS) -> list[Record]:
    """The same of aiokafka's."""
    return read_to_end(bootstrap, topic, timeout_s=PATIENCE_S)


def event_ids(records: Sequence[Record]) -> set[str]:
    return {record.message.event_id for record in records}
