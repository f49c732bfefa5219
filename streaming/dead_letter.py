"""Dead letters: what a reader could not use, with where it came from and why; listing and sending again.

Does not know why something is malformed; whoever rejects a record says so.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kafka import TopicPartition
from kafka.errors import KafkaError

from streaming.clients import make_consumer
from streaming.codec import CONTENT_TYPE, MAX_VALUE_BYTES
from streaming.errors import BrokerUnavailable
from streaming.producer import Producer
from streaming.records import Headers
from streaming.topics import dead_letter_topic

logger = logging.getLogger(__name__)

_PREFIX = "headrace-"
_POLL_MS = 500
_TIMEOUT_S = 10.0
_CUT = f"{_PREFIX}value-bytes"


class RawRecord(Protocol):
    """What kafka-python's and aiokafka's records have in common."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One rejected record. `topic`, `partition`, `offset` are those of the source; `dlq_offset` is its
    place in the dead-letter topic. `truncated` if the value was too large to be kept whole.
    """

    topic: str
    partition: int
    offset: int
    stage: str
    reason: str
    exception: str
    timestamp_ms: int
    dlq_partition: int
    dlq_offset: int
    key: bytes | None
    value: bytes | None
    content_type: bytes | None
    truncated: bool


class DeadLetters:
    """Writes rejected records to the dead-letter topics of their sources, for one `stage` of the stream.

    `on_dead_letter(topic, stage, reason)` is called for each (for counters). Owns its producer.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        stage: str,
        on_dead_letter: Callable[[str, str, str], None] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.stage = stage
        self._bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._on_dead_letter = on_dead_letter
        self._producer: Producer | None = None

    def reject(self, record: RawRecord, *, reason: str, exception: str) -> None:
        """Hands one record over; `flush` confirms. Raises BrokerUnavailable.

        Of a value larger than any valid one only the beginning is kept, so that it always fits.
        """
        headers = [
            (f"{_PREFIX}topic", record.topic.encode()),
            (f"{_PREFIX}partition", str(record.partition).encode()),
            (f"{_PREFIX}offset", str(record.offset).encode()),
            (f"{_PREFIX}stage", self.stage.encode()),
            (f"{_PREFIX}reason", reason.encode()),
            (f"{_PREFIX}exception", exception[:2_000].encode(errors="replace")),
        ]
        headers += [(name, content) for name, content in record.headers if name.lower() == CONTENT_TYPE]
        value = record.value
        if value is not None and len(value) > MAX_VALUE_BYTES:
            headers.append((_CUT, str(len(value)).encode()))
            value = value[:MAX_VALUE_BYTES]
        if self._producer is None:
            self._producer = Producer(self._bootstrap, timeout_s=self._timeout_s)
        self._producer.send_raw(dead_letter_topic(record.topic), record.key, value, headers)
        if self._on_dead_letter is not None:
            self._on_dead_letter(record.topic, self.stage, reason)

    def flush(self) -> None:
        """Returns when the broker has every rejected record; raises BrokerUnavailable."""
        if self._producer is not None:
            self._producer.flush()

    def close(self) -> None:
        """Sends what is buffered and disconnects."""
        if self._producer is not None:
            self._producer.close()


def list_dead_letters(bootstrap: str, topic: str, limit: int | None = None) -> list[DeadLetter]:
    """The newest `limit` dead letters of source topic `topic`, oldest first; None lists all.

    A record that was rejected twice by one stage (it died before it stored its position) is listed
    once. Raises BrokerUnavailable.
    """
    newest: dict[tuple[int, int, str], DeadLetter] = {}
    for letter in _read_all(bootstrap, dead_letter_topic(topic)):
        newest[(letter.partition, letter.offset, letter.stage)] = letter
    letters = sorted(newest.values(), key=lambda letter: (letter.dlq_partition, letter.dlq_offset))
    return letters if limit is None else letters[max(0, len(letters) - limit) :]


def redrive(
    bootstrap: str,
    topic: str,
    *,
    reason: str | None = None,
    select: Callable[[DeadLetter], bool] = lambda _: True,
) -> int:
    """Writes dead letters of `topic` to `topic` again and returns how many.

    All of them, or those of one `reason`, or those for which `select` is true; truncated ones are left
    out. The dead letters stay where they are; events that were learned meanwhile are recognised by
    their ids. Raises BrokerUnavailable.
    """
    chosen = [
        letter
        for letter in list_dead_letters(bootstrap, topic)
        if not letter.truncated and reason in (None, letter.reason) and select(letter)
    ]
    with Producer(bootstrap) as producer:
        for letter in chosen:
            headers = [] if letter.content_type is None else [(CONTENT_TYPE, letter.content_type)]
            producer.send_raw(topic, letter.key, letter.value, headers)
        producer.flush()
    return len(chosen)


def _read_all(bootstrap: str, name: str) -> Iterator[DeadLetter]:
    try:
        consumer = make_consumer(bootstrap, _TIMEOUT_S)
        try:
            partitions = [TopicPartition(name, n) for n in consumer.partitions_for_topic(name) or ()]
            consumer.assign(partitions)
            first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, first[partition])
            while any(consumer.position(partition) < end[partition] for partition in partitions):
                for records in consumer.poll(timeout_ms=_POLL_MS).values():
                    yield from (_letter(record) for record in records)
        finally:
            consumer.close()
    except KafkaError as error:
        raise BrokerUnavailable(f"{bootstrap}: {error}") from error


def _letter(record: RawRecord) -> DeadLetter:
    headers = dict(record.headers)

    def text(name: str) -> str:
        return headers.get(_PREFIX + name, b"").decode(errors="replace")

    return DeadLetter(
        topic=text("topic"),
        partition=_number(text("partition")),
        offset=_number(text("offset")),
        stage=text("stage"),
        reason=text("reason"),
        exception=text("exception"),
        timestamp_ms=record.timestamp,
        dlq_partition=record.partition,
        dlq_offset=record.offset,
        key=record.key,
        value=record.value,
        content_type=headers.get(CONTENT_TYPE),
        truncated=_CUT in headers,
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1
