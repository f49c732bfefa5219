"""The gate for what comes off a topic: JSON and protobuf in, valid messages or MalformedEvent out."""

import json

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item, ItemSid, SemanticId
from protos.headrace.v1.release_pb2 import Release
from streaming.errors import MalformedEvent
from streaming.messages.codec import MAX_VALUE_BYTES, decode, encode
from streaming.messages.topics import INTERACTIONS, ITEMS, MESSAGE_OF, RELEASES, SEMANTIC_IDS

NOW_MS = 1_700_000_000_000
REASONS = {"not_protobuf", "not_json", "invalid", "too_large"}


def event(**changes: object) -> Event:
    fields: dict[str, object] = {
        "event_id": "e1",
        "user_id": "ü-1",
        "item_id": "i1",
        "action": Action.ACTION_CLICK,
        "event_time_ms": NOW_MS,
    }
    return Event(**(fields | changes))  # type: ignore[arg-type]


def test_protobuf_comes_back() -> None:
    sent = event(value=2.5, context={"page": "home"})
    assert decode(INTERACTIONS, encode(sent)) == sent


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        (INTERACTIONS, event()),
        (ITEMS, Item(item_id="i", embeddings=[Embedding(modality="text", values=[0.5, 1])])),
        (SEMANTIC_IDS, ItemSid(item_id="i", sid=SemanticId(codes=[0, 1]), content=[1.0])),
        (RELEASES, Release(release_id="r", metrics={"recall": 0.5})),
    ],
)
def test_json_comes_back_with_and_without_the_header(topic: str, message: Event) -> None:
    value = json_format.MessageToJson(message).encode()
    assert decode(topic, value, [("content-type", b"application/json; charset=utf-8")]) == message
    assert decode(topic, value) == message


def test_json_in_snake_case_by_hand() -> None:
    value = (
        b'{"event_id":"e","user_id":"u","item_id":"i","action":"ACTION_LIKE","event_time_ms":1600000000000,'
    )
    value += b'"extra":1}'
    assert decode(INTERACTIONS, value).action == Action.ACTION_LIKE


def test_no_message_begins_with_the_byte_of_a_json_object() -> None:
    for message_class in MESSAGE_OF.values():
        assert 0x7B >> 3 not in message_class.DESCRIPTOR.fields_by_number


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, [], "invalid"),
        (b"", [], "invalid"),
        (b"\xff\xfe\x00rubbish", [], "not_protobuf"),
        (b"{not json", [], "not_json"),
        (b"\xff\xfe", [("content-type", b"application/json")], "not_json"),
        (b"[" * 100_000, [("content-type", b"application/json")], "not_json"),
        (b"[1]", [("content-type", b"application/json")], "invalid"),
        (b'{"user_id": 7.5}', [], "invalid"),
        (b'{"user_id": [7]}', [], "invalid"),
        (b'{"user_id": true}', [], "invalid"),
        (b'{"foo": 7}', [], "invalid"),
        (b'{"action": "ACTION_DANCE"}', [], "invalid"),
        (b'{"action": 2.5}', [], "invalid"),
        (b'{"action": true}', [], "invalid"),
        (b'{"action": [1]}', [], "invalid"),
        (b'{"user_id": "\\ud800"}', [], "invalid"),
        (b"{}", [("content-type", b"application/x-protobuf")], "not_protobuf"),
        (b"x" * (MAX_VALUE_BYTES + 1), [], "too_large"),
        (encode(event(value=float("nan"))), [], "invalid"),
        (encode(event(user_id="")), [], "invalid"),
        (encode(event(event_time_ms=NOW_MS + 2 * 86_400_000)), [], "invalid"),
        (encode(Item(item_id="i", title="t" * 50)), [], "invalid"),
    ],
)
def test_malformed_is_refused_with_its_reason(
    value: bytes | None, headers: list[tuple[str, bytes]], reason: str
) -> None:
    with pytest.raises(MalformedEvent) as caught:
        decode(INTERACTIONS, value, headers, now_ms=NOW_MS)
    assert caught.value.reason == reason
    assert caught.value.text


def test_numbers_are_ids_as_in_files() -> None:
    fields = {"event_id": 1, "userId": 7.0, "item_id": "i", "eventTimeMs": NOW_MS, "action": "ACTION_CLICK"}
    event = decode(INTERACTIONS, json.dumps(fields).encode())
    assert (event.event_id, event.user_id, event.item_id) == ("1", "7", "i")
    with pytest.raises(MalformedEvent, match=r"user_id 7\.5 is a fraction"):
        decode(INTERACTIONS, json.dumps(fields | {"userId": 7.5}).encode())


def test_a_word_that_is_no_action_is_named() -> None:
    fields = {"eventId": "e", "userId": "u", "itemId": "i", "eventTimeMs": NOW_MS}
    with pytest.raises(
        MalformedEvent, match="action 'ACTION_DANCE' is none of ACTION_IMPRESSION, ACTION_CLICK"
    ):
        decode(INTERACTIONS, json.dumps(fields | {"action": "ACTION_DANCE"}).encode())
    assert decode(INTERACTIONS, json.dumps(fields | {"action": "2"}).encode()).action == Action.ACTION_CLICK


@settings(max_examples=300, deadline=None)
@given(
    topic=st.sampled_from(sorted(MESSAGE_OF)),
    value=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
        lambda inner: st.dictionaries(
            st.sampled_from(["eventId", "userId", "action", "value", "context", "sid", "offsets", "x"]), inner
        ),
        max_leaves=8,
    ).map(lambda document: json.dumps(document).encode()),
    as_json=st.booleans(),
)
def test_any_bytes_are_a_message_or_malformed(topic: str, value: bytes, as_json: bool) -> None:
    headers = [("content-type", b"application/json")] if as_json else []
    try:
        outcome = decode(topic, value, headers, now_ms=NOW_MS)
    except MalformedEvent as error:
        outcome = error.reason
    assert isinstance(outcome, MESSAGE_OF[topic]) or outcome in REASONS
