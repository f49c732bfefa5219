"""What a valid event, item and announced semantic ID look like.

The messages themselves are those of `protos/headrace/v1`; this file owns the rules that protobuf
cannot state. It does not know where a message came from or what becomes of a refused one.
"""

import decimal
import math
import re
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Item, ItemSid
from protos.headrace.v1.release_pb2 import Release
from protos.headrace.v1.trends_pb2 import Trend
from streaming.messages.times import LATEST_MS, time_problem

MAX_ID_CHARS = 256
MAX_RELEASE_ID_CHARS = 128
MAX_CONTEXT_ENTRIES = 32
MAX_KEY_CHARS = 64
MAX_CONTEXT_VALUE_CHARS = 512
MAX_TEXT_CHARS = 2_000
MAX_CATEGORIES = 64
MAX_CATEGORY_CHARS = 256
MAX_EMBEDDINGS = 8
MAX_EMBEDDING_SIZE = 4_096
MAX_COUNT = 1e12
_LARGEST_EXACT = 2**53
_RELEASE_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_RELEASE_ID_CHARS - 1}}}")

Violations = list[tuple[str, str]]


def new_event_id() -> str:
    """An event id that nobody else makes."""
    return uuid.uuid4().hex


def id_text(value: object) -> str:
    """The text of an id of any type: whole numbers without their decimals, text without outer spaces.

    Raises ValueError for what is none: nothing, NaN, a fraction, bytes, a list.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
        raise ValueError(f"is {type(value).__name__}")
    if isinstance(value, int):
        return str(value)
    if not value == value or value in (float("inf"), float("-inf")):
        raise ValueError("is not a number")
    if value != int(value):
        raise ValueError("is a fraction")
    if isinstance(value, float) and abs(value) > _LARGEST_EXACT:
        raise ValueError("is too large for a float to hold exactly; store ids as text or whole numbers")
    return str(int(value))


def ids_as_text(document: dict[str, Any], message: Message) -> None:
    """Makes text of the ids of a JSON object that is to be such a message: producers number their things.

    Raises ValueError for one that is no id.
    """
    for field in message.DESCRIPTOR.fields:
        if field.name != "id" and not field.name.endswith("_id"):
            continue
        for name in (field.name, field.json_name):
            if not isinstance(document.get(name), str | None):
                try:
                    document[name] = id_text(document[name])
                except ValueError as error:
                    raise ValueError(f"{field.name} {document[name]!r:.60} {error}") from None


def id_problem(value: str) -> str | None:
    """What is wrong with an id of an event, user, item or request, or None."""
    if not value:
        return "must not be empty"
    if len(value) > MAX_ID_CHARS:
        return f"must be at most {MAX_ID_CHARS} characters"
    if not value.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        return "must not contain control characters or line breaks"
    return None


def release_id_problem(value: str) -> str | None:
    """What is wrong with the id of a release, or None.

    It names directories in stores of releases and checkpoints, so it may hold no separator and lead nowhere.
    """
    if _RELEASE_ID.fullmatch(value):
        return None
    return f"must be 1 to {MAX_RELEASE_ID_CHARS} of A-Z a-z 0-9 _ . -, beginning with a letter or digit"


def validate_event(event: Event, *, now_ms: int | None = None) -> Violations:
    """The (field, what is wrong) pairs of an event; empty when it is valid.

    `now_ms` is the time at which the event was sent or received, in milliseconds since the epoch; an
    event more than a day after it is refused (`streaming.messages.times`). None skips that check.
    """
    violations: Violations = []
    for field in ("event_id", "user_id", "item_id"):
        problem = id_problem(getattr(event, field))
        if problem:
            violations.append((field, problem))
    if event.request_id and (problem := id_problem(event.request_id)):
        violations.append(("request_id", problem))
    if event.action == Action.ACTION_UNSPECIFIED:
        violations.append(("action", "must be given"))
    elif event.action not in Action.values():
        violations.append(("action", f"{event.action} is not a known action"))
    if problem := time_problem(event.event_time_ms, now_ms):
        violations.append(("event_time_ms", problem))
    if not math.isfinite(event.value):
        violations.append(("value", "must be a finite number"))
    if event.context:
        violations += _map_violations("context", event.context, MAX_CONTEXT_ENTRIES, MAX_CONTEXT_VALUE_CHARS)
    return violations


def validate_item(item: Item, *, now_ms: int | None = None) -> Violations:
    """The (field, what is wrong) pairs of an item; empty when it is valid. `now_ms` as for an event."""
    violations: Violations = []
    if problem := id_problem(item.item_id):
        violations.append(("item_id", problem))
    for field in ("title", "brand"):
        if len(getattr(item, field)) > MAX_TEXT_CHARS:
            violations.append((field, f"must be at most {MAX_TEXT_CHARS} characters"))
    if len(item.categories) > MAX_CATEGORIES:
        violations.append(("categories", f"must be at most {MAX_CATEGORIES}"))
    if any(len(category) > MAX_CATEGORY_CHARS for category in item.categories):
        violations.append(("categories", f"each must be at most {MAX_CATEGORY_CHARS} characters"))
    violations += _map_violations("attributes", item.attributes, MAX_CATEGORIES, MAX_TEXT_CHARS)
    if item.announced_time_ms and (problem := time_problem(item.announced_time_ms, now_ms)):
        violations.append(("announced_time_ms", problem))
    return violations + _embedding_violations(item)


def validate_item_sid(item_sid: ItemSid) -> Violations:
    """The (field, what is wrong) pairs of an announced semantic ID; empty when it is valid."""
    violations: Violations = []
    if problem := id_problem(item_sid.item_id):
        violations.append(("item_id", problem))
    if not item_sid.sid.codes or min(item_sid.sid.codes) < 0:
        violations.append(("sid.codes", "must be given and not negative"))
    if not item_sid.content or not np.isfinite(item_sid.content).all():
        violations.append(("content", "must be given, and all of it finite"))
    return violations


def validate_release(release: Release) -> Violations:
    """The (field, what is wrong) pairs of a release's record; empty when it is valid."""
    violations: Violations = []
    if problem := release_id_problem(release.release_id):
        violations.append(("release_id", problem))
    if release.parent_release_id and (problem := release_id_problem(release.parent_release_id)):
        violations.append(("parent_release_id", problem))
    if not 0 <= release.created_time_ms <= LATEST_MS:
        violations.append(("created_time_ms", "must be milliseconds since 1970, before 2100"))
    return violations


def validate_trend(trend: Trend, *, now_ms: int | None = None) -> Violations:
    """The (field, what is wrong) pairs of a trend; empty when it is valid. `now_ms` as for an event."""
    violations: Violations = []
    if problem := id_problem(trend.item_id):
        violations.append(("item_id", problem))
    if not 0.0 <= trend.decayed_score <= MAX_COUNT:
        violations.append(("decayed_score", f"must be a number from 0 to {MAX_COUNT:g}"))
    if not 0 <= trend.num_events_window <= trend.num_events_total <= MAX_COUNT:
        violations.append(("num_events_total", "must not be negative, nor less than num_events_window"))
    if problem := time_problem(trend.window_end_time_ms, now_ms):
        violations.append(("window_end_time_ms", problem))
    return violations


def _embedding_violations(item: Item) -> Violations:
    violations: Violations = []
    if len(item.embeddings) > MAX_EMBEDDINGS:
        violations.append(("embeddings", f"must be at most {MAX_EMBEDDINGS}"))
    modalities = [embedding.modality for embedding in item.embeddings]
    if len(set(modalities)) != len(modalities):
        violations.append(("embeddings", "must be one for each modality"))
    for i, embedding in enumerate(item.embeddings):
        if not 1 <= len(embedding.modality) <= MAX_KEY_CHARS:
            violations.append((f"embeddings[{i}].modality", f"must be 1 to {MAX_KEY_CHARS} characters"))
        values = np.asarray(embedding.values, dtype=np.float32)
        if not 1 <= len(values) <= MAX_EMBEDDING_SIZE:
            violations.append((f"embeddings[{i}].values", f"must be 1 to {MAX_EMBEDDING_SIZE} numbers"))
        elif not np.isfinite(values).all():
            violations.append((f"embeddings[{i}].values", "must be finite numbers"))
        elif not values.any():
            violations.append((f"embeddings[{i}].values", "must not be all zero"))
    return violations


def _map_violations(
    field: str, entries: Mapping[str, str], max_entries: int, max_value_chars: int
) -> Violations:
    violations: Violations = []
    if len(entries) > max_entries:
        violations.append((field, f"must be at most {max_entries} entries"))
    for key, value in entries.items():
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            violations.append((field, f"each key must be 1 to {MAX_KEY_CHARS} characters"))
            break
        if len(value) > max_value_chars:
            violations.append((field, f"each value must be at most {max_value_chars} characters"))
            break
    return violations
