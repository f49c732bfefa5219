"""Reads topics in batches, from positions that the caller keeps.

All partitions are assigned by hand and every position is sought: the broker's group offsets are
written for people to see and never read. Malformed records go to the dead-letter topic and are passed
over. A broker that is away costs time, not the place. Knows nothing of what the records are for.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from kafka import (
    IsolationLevel,
    KafkaAdminClient,
    KafkaConsumer,
    OffsetAndMetadata,
    OffsetSpec,
    TopicPartition,
)
from kafka.errors import KafkaError, OffsetOutOfRangeError

from streaming.clients.dead_letter import DeadLetters
from streaming.clients.factory import make_admin, make_consumer
from streaming.clients.places import Backoff, name_of, settle
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.messages.codec import read_record
from streaming.messages.records import Record

__all__ = ["PartitionConsumer", "Record", "describe_hidden"]

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
# A broker that hangs holds up whoever asks it for so long.
_QUESTION_TIMEOUT_MS = 5_000
# A broker answers a fetch as soon as there is something; an idle reader asks once in so long. A partition
# that brought more than one poll takes is asked again only when the others' fetch has ended.
_FETCH_MAX_WAIT_MS = 1_000


class PartitionConsumer:
    """`with PartitionConsumer(bootstrap, topics, offsets=stored, ...) as consumer: consumer.poll(...)`.

    `offsets` are the next offsets by "topic/partition"; partitions that it does not name are read from their
    beginning. Connects at the first poll. `stage` names the reader in logs and dead letters; without
    `dead_letters` what is malformed is passed over. Not safe for threads.

    An offset beyond the end of its partition points at records that the broker lost, or belongs to a topic
    that was deleted and made anew. It is never kept: new records would be passed over in silence. Reading
    goes on from the beginning, and `take_rewound` says so; a reader that knows events by their ids takes none
    twice.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        *,
        offsets: Mapping[str, int],
        dead_letters: DeadLetters | None,
        stage: str,
        with_tombstones: bool = False,
    ) -> None:
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._offsets = dict(offsets)
        self._dead_letters = dead_letters
        self._stage = stage
        self._with_tombstones = with_tombstones
        self._rewound: dict[str, int] = {}
        self._hidden: dict[str, int] = {}
        self._consumer: KafkaConsumer | None = None
        self._admin: KafkaAdminClient | None = None
        self._partitions: list[TopicPartition] = []
        self._backoff = Backoff()

    @property
    def offsets(self) -> dict[str, int]:
        """The offsets after everything that `poll` returned or passed over, by "topic/partition"."""
        return dict(self._offsets)

    def take_rewound(self) -> dict[str, int]:
        """The positions that had to be moved back since the last call, and where to."""
        rewound, self._rewound = self._rewound, {}
        return rewound

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records` valid records, waiting at most `timeout_s` for the first; may be empty.

        In order inside a partition. Empty too while the broker is away: the place is kept, and the next
        polls try again with growing pauses.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                records = self._poll_once(max_records, max(0.0, deadline - time.monotonic()))
            except (KafkaError, BrokerUnavailable, OSError) as error:
                self._back_off(error, deadline)
                records = []
            else:
                self._backoff.reset()
            if records or time.monotonic() >= deadline:
                return records

    def lag(self) -> dict[str, int]:
        """How many offsets each partition has beyond `offsets`, to its high watermark.

        Those that an open transaction hides are among them: they are there, and wait for its end. Raises
        BrokerUnavailable.
        """

        def ask(consumer: KafkaConsumer) -> dict[str, int]:
            # In this order: what comes between the two answers is not taken for hidden. By another connection
            # than the consumer's: there, they would wait for the fetch that is under way.
            highwater = self._ends(IsolationLevel.READ_UNCOMMITTED, self._partitions)
            reachable = self._ends(IsolationLevel.READ_COMMITTED, self._partitions)
            self._hidden = {
                name_of(partition): max(0, highwater[partition] - end) for partition, end in reachable.items()
            }
            return {
                name_of(partition): max(0, max(highwater[partition], end) - self._offsets[name_of(partition)])
                for partition, end in reachable.items()
            }

        return self._ask(ask)

    def hidden(self) -> dict[str, int]:
        """How many offsets of each partition an open transaction hid, when `lag` was asked last.

        Counted from the first one that it holds (the last stable offset) to the high watermark, records of
        other producers included: no reader of committed records gets past that before the transaction ends.
        """
        return dict(self._hidden)

    def end_offsets(self) -> dict[str, int]:
        """The offset after the last record of each partition; raises BrokerUnavailable."""
        return self._ask(
            lambda consumer: {
                name_of(partition): int(end)
                for partition, end in consumer.end_offsets(self._partitions).items()
            }
        )

    def commit_for_display(self, group_id: str) -> None:
        """Writes `offsets` as those of a consumer group, for people and tools that watch lag.

        Nothing ever reads them back, so a failure is logged and forgotten.
        """
        try:
            positions = {
                partition: OffsetAndMetadata(self._offsets[name_of(partition)], "", -1)
                for partition in self._partitions
            }
            self._connected_admin().alter_group_offsets(group_id, positions)
        except (KafkaError, BrokerUnavailable, OSError) as error:
            logger.warning("group_offsets_not_written", extra={"group": group_id, "error": repr(error)})

    def close(self) -> None:
        """Disconnects; the place is the caller's already."""
        self._disconnect()
        self._disconnect_admin()

    def _poll_once(self, max_records: int, timeout_s: float) -> list[Record]:
        consumer = self._connected()
        try:
            fetched = consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        except OffsetOutOfRangeError:
            self._clamp(consumer)
            return []
        records: list[Record] = []
        num_rejected = 0
        try:
            for raw in (raw for part in fetched.values() for raw in part):
                try:
                    record = read_record(raw)
                except MalformedEvent as error:
                    self._reject(raw, error)
                    num_rejected += 1
                else:
                    records += [record] if record.message is not None or self._with_tombstones else []
            if num_rejected and self._dead_letters is not None:
                self._dead_letters.flush()
        except BrokerUnavailable:
            # the batch is read again: a dead letter may be written twice, but none is lost
            self._seek(consumer, self._offsets)
            raise
        # all of them: transaction markers move a position without a record
        for partition in self._partitions:
            self._offsets[name_of(partition)] = consumer.position(partition)
        return records

    def _connected(self) -> KafkaConsumer:
        if self._consumer is None:
            consumer = make_consumer(
                self._bootstrap,
                _CONNECT_TIMEOUT_S,
                auto_offset_reset="none",
                fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
            )
            try:
                self._partitions = self._find_partitions(consumer)
                consumer.assign(self._partitions)
                self._clamp(consumer)
            except BaseException:
                consumer.close()
                raise
            self._consumer = consumer
        return self._consumer

    def _find_partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        found = []
        for topic in self._topics:
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                raise BrokerUnavailable(f"no topic {topic} yet")
            found += [TopicPartition(topic, number) for number in sorted(numbers)]
        return found

    def _seek(self, consumer: KafkaConsumer, offsets: Mapping[str, int]) -> None:
        for partition in self._partitions:
            consumer.seek(partition, offsets[name_of(partition)])

    def _clamp(self, consumer: KafkaConsumer) -> None:
        """Seeks every place, after moving those that the broker no longer has."""
        first = consumer.beginning_offsets(self._partitions)
        end = consumer.end_offsets(self._partitions)

        def is_hidden(partition: TopicPartition, offset: int) -> bool:
            highwater = self._ends(IsolationLevel.READ_UNCOMMITTED, [partition])
            return bool(end[partition] < offset <= highwater[partition])

        self._rewound |= settle(self._offsets, first, end, stage=self._stage, is_hidden=is_hidden)
        self._seek(consumer, self._offsets)

    def _reject(self, raw: Any, error: MalformedEvent) -> None:
        if self._dead_letters is not None:
            self._dead_letters.reject(raw, reason=error.reason, exception=error.text)

    def _ask(self, question: Callable[[KafkaConsumer], dict[str, int]]) -> dict[str, int]:
        try:
            return question(self._connected())
        except (KafkaError, OSError) as error:
            raise BrokerUnavailable(f"{self._bootstrap}: {error}") from error

    def _back_off(self, error: Exception, deadline: float) -> None:
        logger.warning("consumer_waits_for_broker", extra={"stage": self._stage, "error": repr(error)})
        self._disconnect()
        time.sleep(max(0.0, min(self._backoff.next_s(), deadline - time.monotonic())))

    def _ends(
        self, isolation: IsolationLevel, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition that a reader of this isolation gets to."""
        try:
            answer = self._connected_admin().list_partition_offsets(
                dict.fromkeys(partitions, OffsetSpec.LATEST), isolation
            )
        except (KafkaError, OSError):
            self._disconnect_admin()  # the next one finds out at once whether anybody listens
            raise
        return {partition: int(found.offset) for partition, found in answer.items()}

    def _connected_admin(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = make_admin(
                self._bootstrap, _CONNECT_TIMEOUT_S, request_timeout_ms=_QUESTION_TIMEOUT_MS
            )
        return self._admin

    def _disconnect_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe_hidden(hidden: Mapping[str, int]) -> str:
    """One line on what `PartitionConsumer.hidden` found; empty where nothing is hidden."""
    return "; ".join(
        f"{num_records:,} records of {name} wait for an open transaction"
        for name, num_records in sorted(hidden.items())
        if num_records
    )
