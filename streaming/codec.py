"""Bytes <-> messages: protobuf by default, the protobuf JSON mapping for foreign producers.

`decode` is the one gate for what comes off a topic: what it returns has been parsed and validated.
It does not know brokers; the caller says what time the record was sent.
"""

import json
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from streaming.errors import MalformedEvent
from streaming.events import Violations, validate_event, validate_item, validate_item_sid
from streaming.records import Headers
from streaming.topics import INTERACTIONS, ITEMS, MESSAGE_OF, SEMANTIC_IDS

CONTENT_TYPE = "content-type"
JSON = b"application/json"

# Every valid message is far smaller, and a dead letter of this size still fits Kafka's default 1 MiB.
MAX_VALUE_BYTES = 524_288

_VALIDATE: dict[str, Callable[[Any], Violations]] = {ITEMS: validate_item, SEMANTIC_IDS: validate_item_sid}


def encode(message: Message) -> bytes:
    """The protobuf bytes of a message: the same bytes for the same message."""
    return message.SerializeToString(deterministic=True)


def decode(topic: str, value: bytes | None, headers: Headers = (), *, now_ms: int | None = None) -> Any:
    """The validated message of a record on `topic`, of class `MESSAGE_OF[topic]`.

    JSON is taken where the header `content-type: application/json` says so, and also where the first
    byte is `{`: 0x7b would be field 15 as a group, which none of our messages has. JSON fields that
    the message does not have are ignored, as protobuf ignores unknown field numbers. `now_ms` as in
    `validate_event`. Raises MalformedEvent with reason not_protobuf, not_json, invalid or too_large.
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
    if topic == INTERACTIONS:
        violations = validate_event(message, now_ms=now_ms)  # type: ignore[arg-type]
    else:
        violations = _VALIDATE.get(topic, lambda _: [])(message)
    if violations:
        raise MalformedEvent("invalid", "; ".join(f"{field} {problem}" for field, problem in violations))
    return message


def _is_json(value: bytes, headers: Headers) -> bool:
    for name, content in headers:
        if name.lower() == CONTENT_TYPE:
            return content.split(b";")[0].strip().lower() == JSON
    return value[:1] == b"{"


def _parse_json(value: bytes, message: Message) -> None:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MalformedEvent("not_json", str(error)) from error
    if not isinstance(document, dict):
        raise MalformedEvent("invalid", "the JSON value is not an object")
    try:
        json_format.ParseDict(document, message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise MalformedEvent("invalid", str(error)) from error
