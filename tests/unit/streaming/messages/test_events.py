"""The rules of events and items that protobuf cannot state."""

import pytest

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item, ItemSid, SemanticId
from protos.headrace.v1.release_pb2 import Release
from protos.headrace.v1.trends_pb2 import Trend
from streaming.messages.events import (
    new_event_id,
    validate_event,
    validate_item,
    validate_item_sid,
    validate_release,
    validate_trend,
)

NOW_MS = 1_700_000_000_000
VALID = Event(event_id="e", user_id="u", item_id="i", action=Action.ACTION_CLICK, event_time_ms=NOW_MS)


def changed(**fields: object) -> Event:
    event = Event()
    event.CopyFrom(VALID)
    event.MergeFrom(Event(**{k: v for k, v in fields.items() if v}))  # type: ignore[arg-type]
    for field in (name for name, value in fields.items() if not value):
        event.ClearField(field)  # type: ignore[arg-type]
    return event


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, None),
        ({"item_id": ""}, "item_id"),
        ({"decayed_score": 1e300}, "decayed_score"),
        ({"decayed_score": float("nan")}, "decayed_score"),
        ({"decayed_score": -1.0}, "decayed_score"),
        ({"num_events_total": -1}, "num_events_total"),
        ({"num_events_window": 9}, "num_events_total"),
        ({"window_end_time_ms": 2**62}, "window_end_time_ms"),
        ({"window_end_time_ms": 0}, "window_end_time_ms"),
    ],
)
def test_what_is_no_trend_is_refused_by_name(changes: dict[str, object], field: str | None) -> None:
    fields = {
        "item_id": "i",
        "num_events_window": 1,
        "num_events_total": 2,
        "decayed_score": 1.5,
        "window_end_time_ms": NOW_MS,
    }
    trend = Trend(**(fields | changes))  # type: ignore[arg-type]
    assert [name for name, _ in validate_trend(trend, now_ms=NOW_MS)] == ([field] if field else [])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, None),
        ({"release_id": ""}, "release_id"),
        ({"release_id": "r\x00"}, "release_id"),
        ({"release_id": "20260101-120000-abc_1.2"}, None),
        ({"release_id": "r" * 129}, "release_id"),
        ({"release_id": ".."}, "release_id"),
        ({"release_id": "/etc"}, "release_id"),
        ({"release_id": "a/../../b"}, "release_id"),
        ({"release_id": ".hidden"}, "release_id"),
        ({"parent_release_id": "a\nb"}, "parent_release_id"),
        ({"parent_release_id": "../r"}, "parent_release_id"),
        ({"created_time_ms": -(2**62)}, "created_time_ms"),
        ({"created_time_ms": 2**62}, "created_time_ms"),
    ],
)
def test_what_is_no_release_is_refused_by_name(changes: dict[str, object], field: str | None) -> None:
    release = Release(**({"release_id": "r", "created_time_ms": NOW_MS} | changes))  # type: ignore[arg-type]
    assert [name for name, _ in validate_release(release)] == ([field] if field else [])


def test_a_valid_event_has_no_violation() -> None:
    assert validate_event(VALID, now_ms=NOW_MS) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "u" * 257}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"item_id": "a\x7fb"}, "item_id"),
        ({"request_id": "r\x00"}, "request_id"),
        ({"action": 0}, "action"),
        ({"action": 99}, "action"),
        ({"event_time_ms": 0}, "event_time_ms"),
        ({"event_time_ms": -5}, "event_time_ms"),
        ({"event_time_ms": NOW_MS + 86_400_001}, "event_time_ms"),
        ({"value": float("nan")}, "value"),
        ({"value": float("inf")}, "value"),
        ({"context": {str(i): "x" for i in range(33)}}, "context"),
        ({"context": {"k" * 65: "x"}}, "context"),
        ({"context": {"k": "x" * 513}}, "context"),
    ],
)
def test_each_rule_names_its_field(fields: dict[str, object], field: str) -> None:
    assert [name for name, _ in validate_event(changed(**fields), now_ms=NOW_MS)] == [field]


def test_the_future_is_not_checked_without_a_clock() -> None:
    assert validate_event(changed(event_time_ms=NOW_MS * 2)) == []


def test_ids_in_any_script_are_valid() -> None:
    assert validate_event(changed(user_id="用户 名\u200dé"), now_ms=NOW_MS) == []


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (Item(), "item_id"),
        (Item(item_id="i", title="t" * 2_001), "title"),
        (Item(item_id="i", categories=["c"] * 65), "categories"),
        (Item(item_id="i", announced_time_ms=-1), "announced_time_ms"),
        (Item(item_id="i", embeddings=[Embedding(modality="text")]), "embeddings[0].values"),
        (Item(item_id="i", embeddings=[Embedding(values=[1.0])]), "embeddings[0].modality"),
        (
            Item(item_id="i", embeddings=[Embedding(modality="text", values=[float("nan")])]),
            "embeddings[0].values",
        ),
        (
            Item(item_id="i", embeddings=[Embedding(modality="text", values=[0.0, 0.0])]),
            "embeddings[0].values",
        ),
        (Item(item_id="i", embeddings=[Embedding(modality="text", values=[1.0])] * 2), "embeddings"),
    ],
)
def test_each_rule_of_items_names_its_field(item: Item, field: str) -> None:
    assert [name for name, _ in validate_item(item)] == [field]


def test_an_item_needs_only_an_id() -> None:
    assert validate_item(Item(item_id="i")) == []


def test_item_sid_needs_codes_and_finite_content() -> None:
    assert validate_item_sid(ItemSid(item_id="i", sid=SemanticId(codes=[1, 2]), content=[0.5])) == []
    bad = ItemSid(item_id="i", sid=SemanticId(codes=[-1]), content=[float("nan")])
    assert [field for field, _ in validate_item_sid(bad)] == ["sid.codes", "content"]


def test_event_ids_differ() -> None:
    assert len({new_event_id() for _ in range(100)}) == 100
