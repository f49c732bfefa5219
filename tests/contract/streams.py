"""Events with ids of their own, and what stands on a topic that the tests of all brokers share."""

import time
import uuid

from kafka import KafkaConsumer, TopicPartition

from protos.headrace.v1.events_pb2 import Action, Event
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS

NUM_PARTITIONS = 4
OLD_MS = 1_000_000_000_000


def make_event(user_id: str, item_id: str = "i1", **changes: object) -> Event:
    fields: dict[str, object] = {
        "event_id": uuid.uuid4().hex,
        "user_id": user_id,
        "item_id": item_id,
        "action": Action.ACTION_CLICK,
        "event_time_ms": OLD_MS,
    }
    return Event(**(fields | changes))  # type: ignore[arg-type]


def end_offsets(bootstrap: str, topic: str = INTERACTIONS) -> dict[str, int]:
    """Where a reader begins that is to see only what comes now."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
    ends = consumer.end_offsets(partitions)
    consumer.close()
    return {f"{topic}/{partition.partition}": end for partition, end in ends.items()}


def read_until(
    bootstrap: str, offsets: dict[str, int], num_records: int, stage: str = "test"
) -> tuple[list[Record], dict[str, int]]:
    """The next records from `offsets`, and the offsets after them; fails after 20 s."""
    records: list[Record] = []
    letters = DeadLetters(bootstrap, stage=stage)
    deadline = time.monotonic() + 20
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets=offsets, dead_letters=letters, stage=stage
    ) as consumer:
        while len(records) < num_records or sum(consumer.lag().values()):
            assert time.monotonic() < deadline, f"{len(records)} of {num_records} records"
            records += consumer.poll(50, 0.2)
        letters.close()
        return records, consumer.offsets
