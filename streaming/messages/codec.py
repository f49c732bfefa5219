"""Bytes <-> messages: protobuf by default, the protobuf JSON mapping for foreign producers.

`read_record` is the one gate for what comes off a topic: what it returns has been parsed and validated,
and whatever is wrong with a record, of whatever kind, is a MalformedEvent. It does not know brokers: both
clients' records have what it looks at.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from streaming.errors import MalformedEvent
from streaming.messages.events import (
    Violations,
    ids_as_text,
    validate_event,
    validate_item,
    validate_item_sid,
    validate_release,
    validate_trend,
)
from streaming.messages.records import Headers, Origin, Record, text_key
from streaming.messages.times import record_now_ms
from streaming.messages.topics import (
    COMPACTED_TOPICS,
    INTERACTIONS,
    ITEMS,
    MESSAGE_OF,
    RELEASES,
    SEMANTIC_IDS,
    TRENDS,
)

CONTENT_TYPE = "content-type"
JSON = b"application/json"

# Every valid message is far smaller, and a dead letter of this size still fits Kafka's default 1 MiB.
MAX_VALUE_BYTES = 524_288


class RawRecord(Protocol):
    """What kafka-python's and aiokafka's records have in common."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Any
    timestamp: int


def encode(message: Message) -> bytes:
    """The protobuf bytes of a message: the same bytes for the same message."""
    return message.SerializeToString(deterministic=True)


def read_record(raw: RawRecord) -> Record:
    """The valid record that was read; a value that is null on a compacted topic is a tombstone.

    Raises MalformedEvent for everything else, whatever goes wrong with it.
    """
    try:
        headers = header_list(raw.headers)
        timestamp_ms = max(raw.timestamp or 0, 0)
        message = None
        if raw.value is not None or raw.topic not in COMPACTED_TOPICS:
            now_ms = record_now_ms(timestamp_ms, int(time.time() * 1000))
            message = decode(raw.topic, raw.value, headers, now_ms=now_ms)
        origin = Origin.of(raw.partition, raw.offset, headers)
        return Record(
            topic=raw.topic,
            partition=raw.partition,
            offset=raw.offset,
            key=text_key(raw.key),
            timestamp_ms=timestamp_ms,
            message=message,
            origin=origin if origin.num_redriven else None,
        )
    except MalformedEvent:
        raise
    except Exception as error:
        # nothing that a record holds may end its reader
        raise MalformedEvent("unreadable", repr(error)) from error


def decode(topic: str, value: bytes | None, headers: Headers = (), *, now_ms: int | None = None) -> Any:
    """The validated message of a record on `topic`, of class `MESSAGE_OF[topic]`.

    JSON is taken where the header `content-type: application/json` says so, and also where the first
    byte is `{`: 0x7b would be field 15 as a group, which none of our messages has. JSON fields that
    the message does not have are ignored, as protobuf ignores unknown field numbers. `now_ms` as in
    `validate_event`; a time after it becomes it. Raises MalformedEvent with reason not_protobuf, not_json,
    invalid or too_large.
    """
    if not value:
        raise MalformedEvent("invalid", "the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        raise MalformedEvent("too_large", f"{len(value)} bytes; at most {MAX_VALUE_BYTES} are taken")
    message = MESSAGE_OF[topic]()
    if _is_json(value, headers):
        _parse_json(value, message)
    else:
        try:
            message.ParseFromString(value)
        except DecodeError as error:
            raise MalformedEvent("not_protobuf", str(error)) from error
    violations = _check(topic, message, now_ms)
    if violations:
        raise MalformedEvent("invalid", "; ".join(f"{field} {problem}" for field, problem in violations))
    return message


def _enum_problem(document: Mapping[str, Any], message: Message) -> str | None:
    """Which word of a JSON object is none of its field's names, such as an action's; None if there is none.

    Protobuf passes such a word over with the fields that it does not know: then the action was not given.
    """
    for field in message.DESCRIPTOR.fields:
        if field.enum_type is None:
            continue
        for name in (field.name, field.json_name):
            word = document.get(name)
            is_number = isinstance(word, str) and word.isdecimal()
            is_name = isinstance(word, str) and word in field.enum_type.values_by_name
            is_whole = isinstance(word, int) and not isinstance(word, bool)
            if word is not None and not (is_number or is_name or is_whole):
                known = ", ".join(value.name for value in field.enum_type.values if value.number)
                return f"{field.name} {word!r:.60} is none of {known}"
    return None


def header_list(
    headers: "Mapping[Any, Any] | Iterable[tuple[Any, Any]] | None",
) -> list[tuple[str, bytes | None]]:
    """Headers as pairs of text and bytes, whatever a client makes of them; values may be null."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [(name if isinstance(name, str) else _text(name), content) for name, content in pairs]


def _text(name: Any) -> str:
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _check(topic: str, message: Any, now_ms: int | None) -> Violations:
    """What is wrong with a message; of a valid one, times after now become now."""
    violations: Violations = []
    if topic == INTERACTIONS:
        violations = validate_event(message, now_ms=now_ms)
        if now_ms is not None:
            message.event_time_ms = min(message.event_time_ms, now_ms)
    elif topic == ITEMS:
        violations = validate_item(message, now_ms=now_ms)
        if now_ms is not None:
            message.announced_time_ms = min(message.announced_time_ms, now_ms)
    elif topic == SEMANTIC_IDS:
        violations = validate_item_sid(message)
    elif topic == RELEASES:
        violations = validate_release(message)
    elif topic == TRENDS:
        violations = validate_trend(message, now_ms=now_ms)
    return violations


def _is_json(value: bytes, headers: Headers) -> bool:
    for name, content in headers:
        if name.lower() == CONTENT_TYPE and content:
            return content.split(b";")[0].strip().lower() == JSON
    return value[:1] == b"{"


def _parse_json(value: bytes, message: Message) -> None:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MalformedEvent("not_json", str(error)) from error
    if not isinstance(document, dict):
        raise MalformedEvent("invalid", "the JSON value is not an object")
    if problem := _enum_problem(document, message):
        raise MalformedEvent("invalid", problem)
    try:
        ids_as_text(document, message)
        json_format.ParseDict(document, message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise MalformedEvent("invalid", str(error)) from error
