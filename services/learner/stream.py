"""What the learner reads: events ready to be learned, and the semantic IDs that make them so.

An event on an item that has no semantic ID yet waits here for a grace time, without holding up the events
behind it, and then goes to the dead-letter topic. The waiting events are part of the checkpoint, because the
offsets are already past them. It does not learn.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import structlog

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import ItemSid
from services import metrics
from services.learner.position import DeferredRecord, LearnerPosition
from services.settings import Settings
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.errors import BrokerUnavailable
from streaming.messages.codec import encode
from streaming.messages.records import ORIGIN, Origin, Record
from streaming.messages.topics import INTERACTIONS, SEMANTIC_IDS

log = structlog.get_logger()

STAGE = "learner"
# With more events waiting than this, none are read until some are known or given up.
_MAX_DEFERRED = 10_000
_MAX_SIDS_PER_POLL = 500
_CATCH_UP_POLL_S = 0.5
# A backlog has waited long enough, and comes in several fetches.
_MIN_WAIT_S = 0.1


class LearnerStream:
    """Reads `interactions` from `position.offsets`, and `semantic-ids` from their beginning.

    `is_known` says whether an item can be learned; `insert_many` takes announced semantic IDs. Close it.
    """

    def __init__(
        self,
        settings: Settings,
        position: LearnerPosition,
        *,
        is_known: Callable[[str], bool],
        insert_many: Callable[[Sequence[ItemSid]], None],
    ) -> None:
        self._service = settings.learner_service
        self._is_known = is_known
        self._insert_many = insert_many
        bootstrap = settings.broker.bootstrap_servers
        self._dead_letters = DeadLetters(bootstrap, stage=STAGE, on_dead_letter=self._count_dead_letter)
        self.num_dead_lettered = position.num_dead_lettered
        self._events = PartitionConsumer(
            bootstrap,
            [INTERACTIONS],
            offsets=position.offsets,
            dead_letters=self._dead_letters,
            stage=STAGE,
        )
        self._sids = PartitionConsumer(
            bootstrap, [SEMANTIC_IDS], offsets={}, dead_letters=self._dead_letters, stage=STAGE
        )
        self._taken_s = -float("inf")
        grace_until = time.monotonic() + self._service.unknown_item_grace_s
        self._deferred = [(grace_until, _to_record(record)) for record in position.deferred]

    @property
    def offsets(self) -> dict[str, int]:
        """The next offset of every partition of `interactions`, after all that was read."""
        return self._events.offsets

    def deferred(self) -> list[DeferredRecord]:
        """The events that were read and still wait for their item."""
        return [_to_deferred(record) for _, record in self._deferred]

    def catch_up(self) -> None:
        """Inserts every semantic ID that is announced already. Raises BrokerUnavailable."""
        end = self._sids.end_offsets()
        while any(self._sids.offsets.get(name, 0) < offset for name, offset in end.items()):
            self._insert_new(_CATCH_UP_POLL_S)

    def take(self) -> list[Record]:
        """The next batch: up to `batch_events` events on known items.

        None of them waits for others longer than `batch_wait_s`: what came while the batch before it was
        learned has waited already.
        """
        deadline = max(time.monotonic() + _MIN_WAIT_S, self._taken_s + self._service.batch_wait_s)
        self._insert_new(0.0)
        ready = self._settle_deferred()
        while len(ready) < self._service.batch_events:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            if len(self._deferred) >= _MAX_DEFERRED:
                if not ready:  # until their items come, or their time is up, nothing is to be done
                    self._insert_new(left_s)
                break
            records = self._events.poll(self._service.batch_events - len(ready), left_s)
            if not records:
                continue
            metrics.EVENTS_CONSUMED.labels(INTERACTIONS).inc(len(records))
            if not all(self._is_known(record.message.item_id) for record in records):
                self._insert_new(0.0)
            ready += self._known_of(records)
        self._taken_s = time.monotonic()
        return ready

    def reject(self, records: Iterable[Record], *, reason: str, exception: str) -> None:
        """Writes events to the dead-letter topic, and returns when they are there.

        Raises BrokerUnavailable: then nothing may be checkpointed, and they will be read again.
        """
        for record in records:
            self._dead_letters.reject(_Rejected(record), reason=reason, exception=exception)
        self._dead_letters.flush()

    def lag(self) -> dict[str, int]:
        """Records not read yet by "topic/partition"; empty while the broker is away."""
        try:
            return self._events.lag()
        except BrokerUnavailable as error:
            log.warning("lag_unknown", error=str(error))
            return {}

    def hidden(self) -> dict[str, int]:
        """Those of them that an open transaction hid when `lag` was asked last."""
        return self._events.hidden()

    def close(self) -> None:
        """Disconnects."""
        self._events.close()
        self._sids.close()
        self._dead_letters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known_of(self, records: Sequence[Record]) -> list[Record]:
        known: list[Record] = []
        grace_until = time.monotonic() + self._service.unknown_item_grace_s
        for record in records:
            if self._is_known(record.message.item_id):
                known.append(record)
            else:
                self._deferred.append((grace_until, record))
        return known

    def _settle_deferred(self) -> list[Record]:
        """Those whose item has become known; those that waited too long become dead letters."""
        now = time.monotonic()
        known, waiting, expired = [], [], []
        for grace_until, record in self._deferred:
            if self._is_known(record.message.item_id):
                known.append(record)
            elif now < grace_until:
                waiting.append((grace_until, record))
            else:
                expired.append(record)
        if expired:
            self._reject_unknown(expired)
        self._deferred = waiting
        return known

    def _reject_unknown(self, records: Sequence[Record]) -> None:
        for record in records:
            problem = (
                f"item {record.message.item_id!r:.80} had no semantic id within "
                f"{self._service.unknown_item_grace_s:g} s: announce it, then redrive"
            )
            self._dead_letters.reject(_Rejected(record), reason="unknown_item", exception=problem)
        self._dead_letters.flush()

    def _insert_new(self, timeout_s: float) -> None:
        records = self._sids.poll(_MAX_SIDS_PER_POLL, timeout_s)
        if records:
            self._insert_many([record.message for record in records])

    def _count_dead_letter(self, topic: str, stage: str, reason: str) -> None:
        self.num_dead_lettered += 1
        metrics.DLQ_RECORDS.labels(topic, stage, reason).inc()


class _Rejected:
    """A decoded record as the dead-letter writer takes it: protobuf again, whatever it was before."""

    def __init__(self, record: Record) -> None:
        self.topic = record.topic
        self.partition = record.partition
        self.offset = record.offset
        self.key: bytes | None = record.key.encode()
        self.value: bytes | None = encode(record.message)
        self.headers = [] if record.origin is None else [record.origin.header()]
        self.timestamp = record.timestamp_ms


def _to_deferred(record: Record) -> DeferredRecord:
    return DeferredRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        value=encode(record.message),
        origin="" if record.origin is None else record.origin.header()[1].decode(),
    )


def _to_record(deferred: DeferredRecord) -> Record:
    event = Event.FromString(deferred.value)
    return Record(
        topic=deferred.topic,
        partition=deferred.partition,
        offset=deferred.offset,
        key=event.user_id,
        timestamp_ms=deferred.timestamp_ms,
        message=event,
        origin=Origin.of(deferred.partition, deferred.offset, [(ORIGIN, deferred.origin.encode())])
        if deferred.origin
        else None,
    )
