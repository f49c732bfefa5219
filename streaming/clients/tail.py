"""Follows topics without end: everything from the beginning (or given offsets), then what comes.

For services that keep a view of a compacted topic, such as `releases` or `semantic-ids`. Keeps its
place through every loss of the broker; what is malformed is logged and skipped.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from streaming.clients.places import Backoff, name_of, settle
from streaming.errors import MalformedEvent
from streaming.header_names import read_any_header_name
from streaming.messages.codec import read_record
from streaming.messages.records import Record, text_key

logger = logging.getLogger(__name__)

# A broker answers a fetch as soon as there is something; an idle reader asks once in so long. No longer:
# while records of one partition are handed over, aiokafka asks for the others alone, and waits for those.
_FETCH_MAX_WAIT_MS = 1_000
# How often its background task looks around; five times a second otherwise.
_LOOK_AROUND_MS = 5_000
_POLL_MS = 10_000
# Until it has caught up: what holds no record for a reader (a transaction's mark) moves its place as well.
_CATCH_UP_POLL_MS = 250
_MAX_RECORDS = 500
_CONNECT_TIMEOUT_S = 30.0


async def tail(
    bootstrap: str,
    topics: Collection[str],
    *,
    offsets: Mapping[str, int] | None = None,
    from_now: bool = False,
    is_wanted: Callable[[str], bool] | None = None,
    on_caught_up: Callable[[], None] | None = None,
    on_malformed: Callable[[ConsumerRecord, MalformedEvent], None] | None = None,
    with_tombstones: bool = False,
) -> AsyncIterator[Record]:
    """Yields the records of all partitions of `topics`, in order per partition, for ever.

    Begins at `offsets` ("topic/partition" -> next offset) and at the beginning of partitions that are
    not named there (with `from_now`: at their end). A record whose key is not `is_wanted` is passed over
    unread. `on_caught_up` is called once: when every record that was there at the start has
    been yielded and taken. `on_malformed` gets each record that is skipped, for those who send it to a
    dead-letter topic. `with_tombstones` yields those too, without a message. Waits for a broker or a topic
    that is not there yet.
    """
    follower = _Follower(bootstrap, topics, dict(offsets or {}), from_now, is_wanted, on_malformed)
    follower.with_tombstones = with_tombstones
    told = on_caught_up is None
    backoff = Backoff()
    try:
        while True:
            try:
                records = await follower.fetch(_POLL_MS if told else _CATCH_UP_POLL_MS)
            except (KafkaError, TimeoutError, OSError) as error:
                logger.warning("tail_waits_for_broker", extra={"topics": list(topics), "error": repr(error)})
                await follower.disconnect()
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            for record in records:
                yield record
            if not told and on_caught_up is not None and follower.caught_up():
                told = True
                on_caught_up()
    finally:
        await follower.disconnect()


class _Follower:
    """One consumer at a time, and the place to go on from when it has to be replaced."""

    def __init__(
        self,
        bootstrap: str,
        topics: Collection[str],
        offsets: dict[str, int],
        from_now: bool,
        is_wanted: Callable[[str], bool] | None,
        on_malformed: Callable[[ConsumerRecord, MalformedEvent], None] | None,
    ) -> None:
        self.with_tombstones = False
        self._bootstrap = bootstrap
        self._on_malformed = on_malformed
        self._topics = topics
        self._offsets = offsets
        self._from_now = from_now
        self._is_wanted = is_wanted
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: list[TopicPartition] = []
        self._end: dict[TopicPartition, int] | None = None

    async def fetch(self, timeout_ms: int) -> list[Record]:
        """The next valid records, none if none came in `timeout_ms`."""
        if self._consumer is None:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._connect()
        consumer = self._consumer
        assert consumer is not None
        try:
            fetched = await consumer.getmany(timeout_ms=timeout_ms, max_records=_MAX_RECORDS)
        except OffsetOutOfRangeError:
            await self._clamp(consumer, await consumer.beginning_offsets(self._partitions))
            return []
        records = []
        for raw_records in fetched.values():
            records += [record for raw in raw_records if (record := self._decode(raw))]
        positions = {name_of(partition): await consumer.position(partition) for partition in self._partitions}
        self._offsets |= positions  # all or none: a failure on the way reads these records again
        return records

    def caught_up(self) -> bool:
        """Whether everything that was there at the first connection has been fetched."""
        return self._end is not None and all(
            self._offsets.get(name_of(partition), 0) >= end for partition, end in self._end.items()
        )

    async def disconnect(self) -> None:
        """Gives up the connection and keeps the place."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _connect(self) -> None:
        read_any_header_name()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
            consumer_timeout_ms=_LOOK_AROUND_MS,
        )
        try:
            await consumer.start()
            self._partitions = await self._find_partitions(consumer)
            consumer.assign(self._partitions)
            first = await consumer.beginning_offsets(self._partitions)
            if self._end is None:
                self._end = await consumer.end_offsets(self._partitions)
            if self._from_now:
                for partition in self._partitions:
                    self._offsets.setdefault(name_of(partition), self._end[partition])
            await self._clamp(consumer, first)
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer

    async def _find_partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        missing = set(self._topics) - await consumer.topics()
        if missing:
            raise KafkaError(f"no topic {', '.join(sorted(missing))} yet")
        # aiokafka learns how many partitions a topic has when one of them is assigned and asked about
        probes = [TopicPartition(topic, 0) for topic in sorted(self._topics)]
        consumer.assign(probes)
        await consumer.end_offsets(probes)
        return [
            TopicPartition(probe.topic, number)
            for probe in probes
            for number in sorted(consumer.partitions_for_topic(probe.topic) or ())
        ]

    async def _clamp(self, consumer: AIOKafkaConsumer, first: Mapping[TopicPartition, int]) -> None:
        """Seeks every place, after moving those that the broker no longer has."""
        settle(self._offsets, first, await consumer.end_offsets(self._partitions), stage="tail")
        for partition in self._partitions:
            consumer.seek(partition, self._offsets[name_of(partition)])

    def _decode(self, raw: ConsumerRecord) -> Record | None:
        if self._is_wanted is not None and not self._is_wanted(text_key(raw.key)):
            return None
        try:
            record = read_record(raw)
        except MalformedEvent as error:
            logger.warning(
                "record_skipped",
                extra={
                    "topic": raw.topic,
                    "partition": raw.partition,
                    "offset": raw.offset,
                    "reason": error.reason,
                },
            )
            if self._on_malformed is not None:
                self._on_malformed(raw, error)
            return None
        return record if record.message is not None or self.with_tombstones else None
