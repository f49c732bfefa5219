"""The faust application that counts `interactions` into the compacted topic `trends`.

Owns how counters meet Kafka: batching, publishing, restart. What is counted is
`streaming/trends/counting.py`.

What it guarantees. An event is counted once per item: its offset is written into the same record as
the counters it changed, and the group's committed offset, which only ever lags behind, says no more
than where to read from. A batch is acknowledged after the broker has confirmed its records. Topic
`trends` is the table's changelog, so a restart reads its state from there. Duplicates made by
producers: see `TrendCounter`. Malformed records are passed over here (the learner and the projector
dead-letter them).

Run one worker: events are keyed by user, so two could only count a share of every item each. A second
one takes the group over from the first, which takes it back. If `interactions` is deleted and made
anew, delete `trends` with it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from google.protobuf.message import Message

from protos.headrace.v1 import events_pb2, trends_pb2
from streaming.clients.producer import AsyncProducer
from streaming.errors import BrokerUnavailable, MalformedEvent, StreamingError
from streaming.header_names import read_any_header_name
from streaming.messages import codec
from streaming.messages.meaning import EventMeaning
from streaming.messages.topics import INTERACTIONS, TRENDS
from streaming.trends.counting import TrendCounter
from streaming.trends.faust_consumer import Transport

logger = logging.getLogger(__name__)

GROUP = "headrace-trends"

# Batches are what makes it fast: one record for each distinct item, confirmed together. Half a second
# of waiting would show in the console, a fifth does not.
_BATCH_EVENTS = 1_000
_LINGER_S = 0.2
_RETRY_WAIT_S = 1.0
_STOP_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TrendsBatch:
    """What became of one batch: records read, items whose trend was published, malformed records."""

    num_events: int
    num_items: int
    num_malformed: int


class TrendsWorker:
    """Counts until cancelled. `on_ready` is called once the state is read back and events are taken,
    `on_batch` after every confirmed batch; both on the event loop.

    Both topics must exist. `data_dir` is where faust puts its (empty) folders.
    """

    def __init__(
        self,
        bootstrap: str,
        data_dir: Path,
        *,
        meaning: EventMeaning,
        on_ready: Callable[[], None],
        on_batch: Callable[[TrendsBatch], None],
    ) -> None:
        self._bootstrap = bootstrap
        self._data_dir = data_dir
        self._meaning = meaning
        self._on_ready = on_ready
        self._on_batch = on_batch

    async def run(self) -> None:
        """Counts until it is cancelled; then what is confirmed is committed.

        Raises StreamingError when the application fails, naming what crashed it.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        async with AsyncProducer(self._bootstrap) as producer:
            app = self._make_app(producer)
            try:
                await app.start()
                if not app.should_stop:
                    self._on_ready()
                await app.wait_until_stopped()
                raise StreamingError(f"the trends application stopped: {app.crash_reason!r}")
            finally:
                await _stop(app)

    def _make_app(self, producer: AsyncProducer) -> Any:
        read_any_header_name()
        app: Any = faust.App(
            GROUP,
            broker=[f"kafka://{address.strip()}" for address in self._bootstrap.split(",")],
            store="memory://",
            datadir=self._data_dir.resolve(),
            web_enabled=False,
            # topics are made by streaming/messages/topics.py
            topic_allow_declare=False,
            topic_disable_leader=True,
            # A static member: the next worker takes the place of a killed one at once. Without it the broker
            # waits for the session to time out.
            consumer_group_instance_id=GROUP,
        )
        app.transport = Transport(app.conf.broker_consumer, app)
        table = app.Table(
            TRENDS,
            key_type=bytes,
            value_type=bytes,
            changelog_topic=_topic(app, TRENDS, internal=True, acks=False, allow_empty=True),
            use_partitioner=True,
        )

        async def count(stream: Any) -> None:
            # new with each start of the agent: events read again are not duplicates of themselves
            counter = None
            # a batch that failed must not be acknowledged
            stream.enable_acks = False
            try:
                async for events in _batches(stream):
                    if counter is None:
                        counter = TrendCounter(self._meaning, await _ends(app.consumer))
                    await self._count_batch(events, table.data, counter, producer)
                    for event in events:
                        await stream.ack(event)
            except Exception as error:
                # faust would begin the agent anew, after the batch that failed
                await app.crash(error)
                raise

        app.agent(_topic(app, INTERACTIONS), name="trends")(count)
        return app

    async def _count_batch(
        self, events: Sequence[Any], store: Any, counter: TrendCounter, producer: AsyncProducer
    ) -> None:
        records, num_malformed = _decode(events)

        def load(item_id: str) -> trends_pb2.Trend | None:
            return _trend(item_id, store.get(item_id.encode()))

        changed = counter.count_many(records, load)
        await _publish(producer, list(changed.items()))
        # After the broker has them: if this was interrupted, the same batch counts from the same state.
        for item_id, trend in changed.items():
            store[item_id.encode()] = codec.encode(trend)
        self._on_batch(
            TrendsBatch(num_events=len(events), num_items=len(changed), num_malformed=num_malformed)
        )


async def _stop(app: Any) -> None:
    """Stops faust, which would wait for ever where no broker answers.

    What it did not commit is read again at the next start, and counted once.
    """
    try:
        async with asyncio.timeout(_STOP_S):
            await app.stop()
    except TimeoutError:
        logger.warning("stop_took_too_long", extra={"seconds": _STOP_S})


async def _batches(stream: Any) -> AsyncGenerator[list[Any], None]:
    """The stream's events in lists of at most `_BATCH_EVENTS`, none held longer than `_LINGER_S`.

    faust's own `noack_take` looks around five times a second, events or not.
    """
    waiting = stream.channel.queue
    batch = []
    async for event in stream.events():
        batch.append(event)
        if len(batch) == 1 and waiting.qsize() < _BATCH_EVENTS:
            await asyncio.sleep(_LINGER_S)
        if len(batch) >= _BATCH_EVENTS or waiting.empty():
            yield batch
            batch = []


def _trend(item_id: str, value: bytes | None) -> trends_pb2.Trend | None:
    """The item's trend so far; one that somebody spoilt counts as none, and the item is counted afresh."""
    if value is None:
        return None
    try:
        trend: trends_pb2.Trend = codec.decode(TRENDS, value, now_ms=int(time.time() * 1000))
    except MalformedEvent as error:
        logger.error("trend_spoilt", extra={"item_id": item_id, "error": str(error)})
        return None
    return trend if trend.item_id == item_id else None


async def _ends(consumer: Any) -> dict[int, int]:
    """The offset after the last record of each partition of `interactions` that this worker reads."""
    mine = [place for place in consumer.assignment() if place.topic == INTERACTIONS]
    return {place.partition: end for place, end in (await consumer.highwaters(*mine)).items()}


def _topic(app: Any, name: str, **options: Any) -> Any:
    """A topic whose keys and values faust leaves as bytes."""
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    return app.topic(name, **raw, **options)


@dataclass(slots=True)
class _Raw:
    """A record of faust's as the gate takes it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Any
    timestamp: int

    @classmethod
    def of(cls, message: Any) -> "_Raw":
        """faust's times are seconds."""
        timestamp_ms = round((message.timestamp or 0) * 1000)
        return cls(
            INTERACTIONS,
            message.partition,
            message.offset,
            message.key,
            message.value,
            message.headers,
            timestamp_ms,
        )


def _decode(events: Sequence[Any]) -> tuple[list[tuple[int, int, events_pb2.Event]], int]:
    """(partition, offset, event) of the valid ones, and how many were not."""
    records = []
    num_malformed = 0
    for event in events:
        try:
            record = codec.read_record(_Raw.of(event.message))
        except MalformedEvent:
            num_malformed += 1
        else:
            records.append((record.partition, record.offset, record.message))
    return records, num_malformed


async def _publish(producer: AsyncProducer, trends: list[tuple[str, Message]]) -> None:
    """Sends until confirmed; sending a trend again changes nothing."""
    while True:
        try:
            return await producer.send_many(TRENDS, trends)
        except BrokerUnavailable as error:
            logger.warning("trends_not_published", extra={"error": str(error)})
            await asyncio.sleep(_RETRY_WAIT_S)
