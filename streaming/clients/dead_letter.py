"""Dead letters: what a reader could not use, with where it came from and why; listing and sending again.

One source record is one letter, however many readers reject it and however often it is sent again: it is
known by the place where it first stood (`streaming.messages.records.Origin`), which travels with it in a
header. The topic holds one record for each rejection, and an empty one for each sending; all those of one
place are one letter. Whatever a record holds, its letter can be written: what is too large for one is cut,
and then not sent again. Does not know why something is malformed; whoever rejects a record says so.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kafka import TopicPartition
from kafka.errors import KafkaError

from streaming.clients.factory import make_consumer
from streaming.clients.producer import Producer
from streaming.errors import BrokerUnavailable
from streaming.messages.codec import CONTENT_TYPE, MAX_VALUE_BYTES, RawRecord, header_list
from streaming.messages.records import Origin
from streaming.messages.topics import dead_letter_topic

logger = logging.getLogger(__name__)

_PREFIX = "headrace-"
_POLL_MS = 500
_TIMEOUT_S = 10.0
_MAX_KEY_BYTES = 65_536
_MAX_CONTENT_TYPE_BYTES = 256
_CUT = f"{_PREFIX}value-bytes"
_NUMBER = re.compile("[0-9]{1,18}")
_REDRIVEN = f"{_PREFIX}redriven"


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One rejected record. `topic`, `partition`, `offset` are those of the source; `dlq_offset` is the place
    of its newest rejection in the dead-letter topic, and `stage`, `reason`, `exception` are that one's.

    `stages` are all that rejected it, `num_failed` how often it was read in vain, `num_redriven` how often it
    was sent again. `truncated` if the value was too large to be kept whole.
    """

    topic: str
    partition: int
    offset: int
    stage: str
    stages: tuple[str, ...]
    reason: str
    exception: str
    timestamp_ms: int
    dlq_partition: int
    dlq_offset: int
    key: bytes | None
    value: bytes | None
    content_type: bytes | None
    truncated: bool
    num_failed: int = 1
    num_redriven: int = 0


class DeadLetters:
    """Writes rejected records to the dead-letter topics of their sources, for one `stage` of the stream.

    `on_dead_letter(topic, stage, reason)` is called for each that was confirmed (for counters). Owns its
    producer.
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
        self._unconfirmed: list[tuple[str, str]] = []
        self._producer: Producer | None = None

    def reject(self, record: RawRecord, *, reason: str, exception: str) -> None:
        """Hands one record over; `flush` confirms. Raises BrokerUnavailable.

        Of a value or key larger than any valid one only the beginning is kept, so that it always fits.
        """
        given = header_list(record.headers)
        origin = Origin.of(record.partition, record.offset, given)
        headers: list[tuple[str, bytes | None]] = [
            *_place(record.topic, origin),
            (f"{_PREFIX}stage", self.stage.encode()),
            (f"{_PREFIX}reason", reason.encode()),
            (f"{_PREFIX}exception", exception[:2_000].encode(errors="replace")),
        ]
        content_type = next((one for name, one in given if name.lower() == CONTENT_TYPE and one), b"")
        if content_type:
            headers.append((CONTENT_TYPE, content_type[:_MAX_CONTENT_TYPE_BYTES]))
        key, value = record.key, record.value
        if len(value or b"") > MAX_VALUE_BYTES or len(key or b"") > _MAX_KEY_BYTES:
            headers.append((_CUT, str(len(value or b"")).encode()))
            key, value = key and key[:_MAX_KEY_BYTES], value and value[:MAX_VALUE_BYTES]
        if self._producer is None:
            self._producer = Producer(self._bootstrap, timeout_s=self._timeout_s)
        self._producer.send_raw(dead_letter_topic(record.topic), key, value, headers)
        self._unconfirmed.append((record.topic, reason))

    def flush(self) -> None:
        """Returns when the broker has every rejected record; raises BrokerUnavailable, and forgets them."""
        rejected, self._unconfirmed = self._unconfirmed, []
        if self._producer is not None:
            self._producer.flush()
        if self._on_dead_letter is not None:
            for topic, reason in rejected:
                self._on_dead_letter(topic, self.stage, reason)

    def close(self) -> None:
        """Sends what is buffered and disconnects."""
        if self._producer is not None:
            self._producer.close()


def list_dead_letters(bootstrap: str, topic: str, limit: int | None = None) -> list[DeadLetter]:
    """The newest `limit` dead letters of source topic `topic`, oldest first; None lists all.

    Raises BrokerUnavailable.
    """
    letters: dict[tuple[int, int], DeadLetter] = {}
    redriven: dict[tuple[int, int], int] = {}
    for record in _read_all(bootstrap, dead_letter_topic(topic)):
        headers = dict(header_list(record.headers))
        if _REDRIVEN in headers:
            place = (_number(headers, "partition"), _number(headers, "offset"))
            redriven[place] = max(redriven.get(place, 0), _number(headers, "redriven"))
            continue
        letter = _letter(record, headers)
        place = (letter.partition, letter.offset)
        known = letters.get(place)
        if known is not None:
            letter = replace(
                letter,
                stages=tuple(dict.fromkeys((*known.stages, letter.stage))),
                num_failed=max(known.num_failed, letter.num_failed),
            )
        letters[place] = letter
    newest = [replace(letter, num_redriven=redriven.get(place, 0)) for place, letter in letters.items()]
    newest.sort(key=lambda letter: (letter.dlq_partition, letter.dlq_offset))
    return newest if limit is None else newest[max(0, len(newest) - limit) :]


def redrive(
    bootstrap: str,
    topic: str,
    *,
    reason: str | None = None,
    again: bool = False,
    select: Callable[[DeadLetter], bool] = lambda _: True,
) -> int:
    """Writes dead letters of `topic` to `topic` again and returns how many.

    All of them, or those of one `reason`, or those for which `select` is true; those that were sent before
    only if `again`. Truncated ones are left out. What fails again is the same letter; events that were
    learned meanwhile are recognised by their ids. Raises BrokerUnavailable.
    """
    chosen = [
        letter
        for letter in list_dead_letters(bootstrap, topic)
        if not letter.truncated
        and reason in (None, letter.reason)
        and (again or not letter.num_redriven)
        and select(letter)
    ]
    origins = [
        Origin(partition=letter.partition, offset=letter.offset, num_redriven=letter.num_redriven + 1)
        for letter in chosen
    ]
    with Producer(bootstrap) as producer:
        for letter, origin in zip(chosen, origins, strict=True):
            headers: list[tuple[str, bytes | None]] = [origin.header()]
            if letter.content_type is not None:
                headers.append((CONTENT_TYPE, letter.content_type))
            producer.send_raw(topic, letter.key, letter.value, headers)
        producer.flush()
        for letter, origin in zip(chosen, origins, strict=True):
            sent = [*_place(topic, origin), (_REDRIVEN, str(origin.num_redriven).encode())]
            producer.send_raw(dead_letter_topic(topic), letter.key, b"", sent)
        producer.flush()
    return len(chosen)


def _place(topic: str, origin: Origin) -> list[tuple[str, bytes | None]]:
    """The headers that say which source record a letter is of."""
    return [
        (f"{_PREFIX}topic", topic.encode()),
        (f"{_PREFIX}partition", str(origin.partition).encode()),
        (f"{_PREFIX}offset", str(origin.offset).encode()),
        (f"{_PREFIX}attempt", str(origin.num_redriven).encode()),
    ]


def _read_all(bootstrap: str, name: str) -> Iterator[RawRecord]:
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
                    yield from records
        finally:
            consumer.close()
    except KafkaError as error:
        raise BrokerUnavailable(f"{bootstrap}: {error}") from error


def _letter(record: RawRecord, headers: dict[str, bytes | None]) -> DeadLetter:
    stage = _header(headers, "stage")
    return DeadLetter(
        topic=_header(headers, "topic"),
        partition=_number(headers, "partition"),
        offset=_number(headers, "offset"),
        stage=stage,
        stages=(stage,),
        reason=_header(headers, "reason"),
        exception=_header(headers, "exception"),
        timestamp_ms=record.timestamp,
        dlq_partition=record.partition,
        dlq_offset=record.offset,
        key=record.key,
        value=record.value,
        content_type=headers.get(CONTENT_TYPE),
        truncated=_CUT in headers,
        num_failed=1 + max(0, _number(headers, "attempt")),
    )


def _header(headers: dict[str, bytes | None], name: str) -> str:
    return (headers.get(_PREFIX + name) or b"").decode(errors="replace")


def _number(headers: dict[str, bytes | None], name: str) -> int:
    text = _header(headers, name)
    return int(text) if _NUMBER.fullmatch(text) else -1
