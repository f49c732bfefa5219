"""Sends a data set's events as if they happened now, and reads a topic from end to end as batches.

Any object with a producer's `send` and `flush` takes the replay, so a test or an evaluation needs no
broker. Does not know what the events are used for.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from google.protobuf.message import Message

from streaming.clients.consumer import PartitionConsumer
from streaming.datasets.folder import Dataset
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS, ITEMS

_FLUSH_EVENTS = 1_000
_POLL_S = 0.5


class Sink(Protocol):
    """What takes a replay: `streaming.clients.producer.Producer`, for one."""

    def send(self, topic: str, key: str, message: Message) -> None:
        """Takes one message."""

    def flush(self) -> None:
        """Returns when everything taken has arrived."""


def replay(
    dataset: Dataset,
    sink: Sink,
    *,
    start: float = 0.0,
    end: float = 1.0,
    events_per_s: float | None = None,
    known_items: Collection[str] = (),
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Sends the events from share `start` to share `end` in stream order; returns how many.

    Each item that is not in `known_items` is announced on `items` before its first event here, as
    `Dataset.announcements` says. `events_per_s` None sends as fast as the sink takes them. `on_progress` gets
    the number sent so far, at each flush (every 1,000 events, or about 10 times a second at a given rate).
    Raises BrokerUnavailable from the sink.
    """
    first, last = dataset.bounds(start, end)
    items = {item.item_id: item for item in dataset.announcements()}
    announced = set(known_items)
    flush_events = _FLUSH_EVENTS if events_per_s is None else max(1, round(events_per_s / 10))
    began_s = time.monotonic()
    for chunk in range(first, last, flush_events):
        chunk_end = min(chunk + flush_events, last)
        for n in range(chunk, chunk_end):
            event = dataset.event(n)
            if event.item_id not in announced:
                announced.add(event.item_id)
                sink.send(ITEMS, event.item_id, items[event.item_id])
            sink.send(INTERACTIONS, event.user_id, event)
        sink.flush()
        if on_progress is not None:
            on_progress(chunk_end - first)
        if events_per_s is not None:
            time.sleep(max(0.0, began_s + (chunk_end - first) / events_per_s - time.monotonic()))
    return last - first


def replay_topic(consumer: PartitionConsumer, *, batch_size: int) -> Iterator[list[Record]]:
    """Yields everything from the consumer's place to the end that the topics have now.

    Batches hold at most `batch_size` valid records; what arrives meanwhile may be in the last ones.
    Afterwards `consumer.offsets` says where to go on. Raises BrokerUnavailable if the broker does not
    answer at the start; a broker that goes away later is waited for.
    """
    ends = consumer.end_offsets()
    while any(consumer.offsets[position] < end for position, end in ends.items()):
        records = consumer.poll(batch_size, _POLL_S)
        if records:
            yield records
