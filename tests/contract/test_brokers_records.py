"""What every broker promises of records: order, partitions, offsets, and what becomes of poison.

The brokers are shared by the whole run, so each test uses users, items and positions of its own.
"""

import asyncio
import json
import time
import uuid
from collections import defaultdict

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from protos.headrace.v1.events_pb2 import Event
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetter, DeadLetters, list_dead_letters, redrive
from streaming.clients.producer import AsyncProducer, Producer
from streaming.datasets.replay import replay_topic
from streaming.messages.codec import MAX_VALUE_BYTES, encode
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS
from tests.contract.streams import OLD_MS, end_offsets, make_event, read_until


def test_events_of_a_user_stay_in_order_in_one_partition(bootstrap: str) -> None:
    offsets = end_offsets(bootstrap)
    users = [f"user-{uuid.uuid4().hex[:8]}" for _ in range(10)]
    with Producer(bootstrap) as producer:
        for n in range(200):
            producer.send(INTERACTIONS, users[n % 10], make_event(users[n % 10], f"i{n}"))
        producer.flush()
    records, _ = read_until(bootstrap, offsets, 200)
    by_user = defaultdict(list)
    partitions = defaultdict(set)
    for record in records:
        by_user[record.key].append(record.message.item_id)
        partitions[record.key].add(record.partition)
        assert record.message.event_time_ms == OLD_MS
        assert abs(record.timestamp_ms / 1000 - time.time()) < 60
    assert by_user == {user: [f"i{n}" for n in range(u, 200, 10)] for u, user in enumerate(users)}
    assert all(len(numbers) == 1 for numbers in partitions.values())
    assert len(set.union(*partitions.values())) > 1


async def test_both_producers_choose_the_same_partition(bootstrap: str) -> None:
    offsets = await asyncio.to_thread(end_offsets, bootstrap)
    users = [f"ü{uuid.uuid4().hex[:8]}" for _ in range(20)]
    async with AsyncProducer(bootstrap) as producer:
        await producer.send(INTERACTIONS, users[0], make_event(users[0]))
        await producer.send_many(INTERACTIONS, [(user, make_event(user)) for user in users[1:]])

    def send_again() -> list[Record]:
        with Producer(bootstrap) as other:
            for user in users:
                other.send(INTERACTIONS, user, make_event(user))
            other.flush()
        return read_until(bootstrap, offsets, 40)[0]

    records = await asyncio.to_thread(send_again)
    partitions = defaultdict(list)
    for record in records:
        partitions[record.key].append(record.partition)
    assert {len(numbers) for numbers in partitions.values()} == {2}
    assert {len(set(numbers)) for numbers in partitions.values()} == {1}


async def test_many_records_at_once_stay_in_order_and_are_all_there(bootstrap: str) -> None:
    """Some megabytes, so that each partition gets several batches, and single records between them."""
    offsets = await asyncio.to_thread(end_offsets, bootstrap)
    users = [f"user-{uuid.uuid4().hex[:8]}" for _ in range(10)]

    def some(first: int, last: int) -> list[tuple[str, Event]]:
        return [(users[n % 10], make_event(users[n % 10], f"{n:05d}" + 40 * "i")) for n in range(first, last)]

    async with AsyncProducer(bootstrap) as producer:
        await producer.send_many(INTERACTIONS, some(0, 12_000))
        for one in some(12_000, 12_010):
            await producer.send_many(INTERACTIONS, [one])
        await asyncio.gather(
            producer.send_many(INTERACTIONS, some(12_010, 16_000)),
            producer.send_many(INTERACTIONS, [("alone", make_event("alone", "i"))]),
        )
    records, _ = await asyncio.to_thread(read_until, bootstrap, offsets, 16_001)
    by_user = defaultdict(list)
    for record in records:
        by_user[record.key].append(int(record.message.item_id.rstrip("i") or -1))
    assert by_user.pop("alone") == [-1]
    assert by_user == {user: list(range(u, 16_000, 10)) for u, user in enumerate(users)}


def test_foreign_json_is_read_and_poison_is_set_aside(bootstrap: str) -> None:
    """What kcat sends: raw bytes, perhaps without a key or a header."""
    offsets = end_offsets(bootstrap)
    marker = uuid.uuid4().hex[:8]
    good = {
        "event_id": "e",
        "user_id": marker,
        "itemId": "i",
        "action": "ACTION_LIKE",
        "event_time_ms": OLD_MS,
    }
    json_header = [("content-type", b"application/json")]
    poison: list[tuple[bytes, list[tuple[str, bytes]], str]] = [
        (b"\xff\xff not a message", [], "not_protobuf"),
        (b'{"event_id":', [], "not_json"),
        (b"not json", json_header, "not_json"),
        (json.dumps(good | {"user_id": ""}).encode(), [], "invalid"),
        (encode(make_event(marker, value=float("nan"))), [], "invalid"),
        (encode(make_event(marker, event_time_ms=int(time.time() * 1000) + 3 * 86_400_000)), [], "invalid"),
        (b"x" * (MAX_VALUE_BYTES + 5), [], "too_large"),
    ]
    client = KafkaProducer(bootstrap_servers=bootstrap)
    for value, headers, _ in poison:
        client.send(INTERACTIONS, value=value, key=marker.encode(), headers=headers, partition=1)
    client.send(INTERACTIONS, value=json.dumps(good).encode(), partition=1)
    client.send(INTERACTIONS, value=json.dumps(good).encode(), headers=json_header, partition=1)
    client.flush()
    client.close()

    records, after = read_until(bootstrap, offsets, 2, stage=f"stage-{marker}")
    assert [(r.message.user_id, r.message.item_id, r.key) for r in records] == [(marker, "i", "")] * 2
    position = f"{INTERACTIONS}/1"
    assert after[position] == offsets[position] + len(poison) + 2

    letters = [x for x in list_dead_letters(bootstrap, INTERACTIONS) if x.stage == f"stage-{marker}"]
    assert [letter.reason for letter in letters] == [reason for _, _, reason in poison]
    assert [letter.offset - offsets[position] for letter in letters] == list(range(len(poison)))
    assert {(letter.topic, letter.partition, letter.key) for letter in letters} == {
        (INTERACTIONS, 1, marker.encode())
    }
    assert all(letter.exception for letter in letters)
    assert [letter.value for letter in letters[:-1]] == [value for value, _, _ in poison[:-1]]
    assert letters[-1].truncated
    assert len(list_dead_letters(bootstrap, INTERACTIONS, limit=2)) == 2

    offsets = end_offsets(bootstrap)

    def mine(letter: DeadLetter) -> bool:
        return letter.stage == f"stage-{marker}"

    assert redrive(bootstrap, INTERACTIONS, reason="not_json", select=mine) == 2
    read_until(bootstrap, offsets, 0, stage=f"again-{marker}")
    again = [x for x in list_dead_letters(bootstrap, INTERACTIONS) if x.stage == f"again-{marker}"]
    assert sorted(letter.value or b"" for letter in again) == [b"not json", b'{"event_id":']
    assert redrive(bootstrap, INTERACTIONS, reason="too_large", select=mine) == 0


def test_a_reader_goes_on_from_its_own_offsets_not_the_groups(bootstrap: str) -> None:
    offsets = end_offsets(bootstrap)
    with Producer(bootstrap) as producer:
        for n in range(60):
            producer.send(INTERACTIONS, f"u{n}", make_event(f"u{n}", f"i{n}"))
        producer.flush()
    letters = DeadLetters(bootstrap, stage="test")
    group = f"group-{uuid.uuid4().hex[:8]}"
    seen: list[str] = []
    deadline = time.monotonic() + 30
    while len(seen) < 60:
        assert time.monotonic() < deadline
        with PartitionConsumer(
            bootstrap, [INTERACTIONS], offsets=offsets, dead_letters=letters, stage="test"
        ) as consumer:
            seen += [record.message.item_id for record in consumer.poll(7, 2.0)]
            offsets = consumer.offsets
            consumer.commit_for_display(group)
    assert sorted(seen) == sorted(f"i{n}" for n in range(60))
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    (committed,) = admin.list_group_offsets({group: None}).values()
    admin.close()
    assert {f"{tp.topic}/{tp.partition}": meta.offset for tp, meta in committed.items()} == offsets


@pytest.mark.case("an offset beyond the topic's end")
def test_an_offset_beyond_the_end_is_read_from_the_beginning(bootstrap: str) -> None:
    """Otherwise what comes now would be passed over in silence."""
    offsets = end_offsets(bootstrap)
    place = f"{INTERACTIONS}/0"
    ahead = offsets | {place: offsets[place] + 1_000}
    letters = DeadLetters(bootstrap, stage="test")
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets=ahead, dead_letters=letters, stage="test"
    ) as consumer:
        deadline = time.monotonic() + 20
        seen: list[Record] = []
        while consumer.offsets != offsets:
            assert time.monotonic() < deadline
            seen += consumer.poll(100, 0.2)
        assert {record.position for record in seen} <= {place}
        assert consumer.take_rewound() == {place: 0}
        assert consumer.take_rewound() == {}


def test_a_topic_is_replayed_to_its_end_in_batches(bootstrap: str) -> None:
    offsets = end_offsets(bootstrap)
    with Producer(bootstrap) as producer:
        for n in range(130):
            producer.send(INTERACTIONS, f"u{n}", make_event(f"u{n}", f"i{n}"))
        producer.flush()
    letters = DeadLetters(bootstrap, stage="test")
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets=offsets, dead_letters=letters, stage="test"
    ) as consumer:
        batches = list(replay_topic(consumer, batch_size=50))
        assert sum(consumer.lag().values()) == 0
    assert all(0 < len(batch) <= 50 for batch in batches)
    assert sorted(r.message.item_id for batch in batches for r in batch) == sorted(
        f"i{n}" for n in range(130)
    )
