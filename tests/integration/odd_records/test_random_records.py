"""Bytes, JSON, protobuf and headers that are nothing: each is taken, or rejected with a reason."""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from streaming.clients.dead_letter import list_dead_letters
from streaming.clients.topic_admin import create_topics
from streaming.messages.codec import JSON, encode
from streaming.messages.topics import COMPACTED_TOPICS, INTERACTIONS, MESSAGE_OF, TRENDS
from tests.integration.odd_records.readers import Headers, make_event, polled, tailed, write


def random_json(rng: random.Random, names: Sequence[str], depth: int = 3) -> Any:
    """A JSON value; objects like to have the fields that a message has."""
    leaves = [None, True, 0, -1, 10**30, 1.5, float("nan"), "", "text", "\ud800", "ACTION_CLICK", "1e400"]
    kind = rng.randrange(8)
    if depth and kind == 0:
        return [random_json(rng, names, depth - 1) for _ in range(rng.randrange(4))]
    if depth and (kind == 1 or depth == 3):
        keys = rng.choices([*names, "", "x"], k=rng.randrange(8))
        return {key: random_json(rng, names, depth - 1) for key in keys}
    return rng.choice(leaves)


def random_value(rng: random.Random, topic: str) -> bytes | None:
    """Nothing, bytes, JSON, or a message that was cut and changed."""
    message_class = MESSAGE_OF[topic]
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([None, b"", b"{", b"[]", b"null", b'{"a":' * 5_000])
    if kind < 4:
        return rng.randbytes(rng.randrange(200))
    if kind < 7:
        names = [field.name for field in message_class.DESCRIPTOR.fields]
        return json.dumps(random_json(rng, names)).encode()
    value = bytearray(encode(make_event()) if topic == INTERACTIONS else rng.randbytes(30))
    for _ in range(rng.randrange(4)):
        value[rng.randrange(len(value))] = rng.randrange(256)
    return bytes(value[: rng.randrange(len(value) + 1)])


def random_headers(rng: random.Random) -> list[tuple[str, bytes | None]]:
    """Any number of headers, of names that mean something here and of others."""
    values = [None, b"", JSON, b"application/json;charset=\xff", b"\x00\xff", b"1/x/3"]
    names = ["content-type", "Content-Type", "", "headrace-origin", "x"]
    return [(rng.choice(names), rng.choice(values)) for _ in range(rng.randrange(4))]


def random_records(rng: random.Random, topic: str) -> list[tuple[bytes | None, bytes | None, Headers]]:
    """400 records; those without a value have a key, and on a compacted topic all have one."""
    values = [random_value(rng, topic) for _ in range(400)]
    no_key: list[bytes | None] = [] if topic in COMPACTED_TOPICS else [None]
    keys = [rng.choice([b"", b"key", b"\xff", *(no_key if value is not None else [])]) for value in values]
    return [(key, value, random_headers(rng)) for key, value in zip(keys, values, strict=True)]


@pytest.mark.integration
def test_the_tail_of_the_counters_reaches_the_end_of_anything(embedded_broker: str) -> None:
    create_topics(embedded_broker, num_partitions=4, replication_factor=1)
    before = len(tailed(embedded_broker, TRENDS))
    asyncio.run(write(embedded_broker, TRENDS, random_records(random.Random(0), TRENDS)))
    assert len(tailed(embedded_broker, TRENDS)) >= before


@pytest.mark.integration
@pytest.mark.case("random bytes, JSON, protobuf and headers on every topic")
@pytest.mark.parametrize("topic", sorted(set(MESSAGE_OF) - {TRENDS}))
def test_every_record_is_taken_or_a_dead_letter(embedded_broker: str, topic: str) -> None:
    create_topics(embedded_broker, num_partitions=4, replication_factor=1)
    rng = random.Random(topic)
    before, rejected = len(polled(embedded_broker, topic)), num_letters(embedded_broker, topic)
    batch = random_records(rng, topic)
    asyncio.run(write(embedded_broker, topic, batch))
    num_tombstones = sum(value is None for _, value, _ in batch) if topic in COMPACTED_TOPICS else 0
    taken = len(polled(embedded_broker, topic)) - before
    letters = num_letters(embedded_broker, topic) - rejected
    assert taken + letters + num_tombstones == len(batch)
    assert letters > 100
    assert len(tailed(embedded_broker, topic)) == before + taken
    assert len(polled(embedded_broker, topic)) == before + taken
    assert num_letters(embedded_broker, topic) == rejected + letters


def num_letters(bootstrap: str, topic: str) -> int:
    """How many dead letters a topic has."""
    return len(list_dead_letters(bootstrap, topic))
