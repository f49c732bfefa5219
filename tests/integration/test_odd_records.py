"""Records as foreign clients write them: every codec, any header, any time, and bytes that are nothing.

Each goes through the three real readers (kafka-python's, aiokafka's, faust's): taken, or rejected with a
reason; none ends a reader, and the end is reached.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer
from prometheus_client import REGISTRY

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.learner_pb2 import StatusResponse
from services.learner import report
from services.learner.position import LearnerPosition
from services.learner.stream import LearnerStream
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters, list_dead_letters, redrive
from streaming.clients.follow import read_to_end
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.header_names import read_any_header_name
from streaming.messages.codec import JSON, encode
from streaming.messages.meaning import EventMeaning
from streaming.messages.records import Record
from streaming.messages.topics import COMPACTED_TOPICS, INTERACTIONS, MESSAGE_OF, TRENDS
from streaming.trends.worker import TrendsWorker
from tests.conftest import DEFAULT_KAFKA_IMAGE, find_free_port
from tests.integration.learner_world import small_settings

PATIENCE_S = 60
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")

Headers = Sequence[tuple[str, bytes | None]]


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for this file alone: what is written here is nothing that other tests' readers expect."""
    with EmbeddedBroker(tmp_path_factory.mktemp("odd"), f"127.0.0.1:{find_free_port()}") as broker:
        yield broker.bootstrap


@pytest.fixture
def bootstrap(broker: str) -> str:
    create_topics(broker, num_partitions=4, replication_factor=1)
    return broker


def make_event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "event_id": uuid.uuid4().hex,
        "user_id": f"user-{uuid.uuid4().hex[:8]}",
        "item_id": f"item-{uuid.uuid4().hex[:8]}",
        "action": Action.ACTION_CLICK,
        "event_time_ms": time.time_ns() // 1_000_000 - 60_000,
    }
    return Event(**(fields | changes))


def as_json(event: Event) -> bytes:
    return json.dumps(
        {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "action": "ACTION_CLICK",
            "event_time_ms": event.event_time_ms,
        }
    ).encode()


def kcat(bootstrap: str, value: bytes, *arguments: str | bytes) -> None:
    """Writes one record with librdkafka, as any producer may."""
    program = shutil.which("kcat")
    if program is None:
        pytest.fail("this test needs kcat (Debian: apt-get install kcat)", pytrace=False)
    command = [program, "-P", "-b", bootstrap, "-t", INTERACTIONS, *arguments]
    subprocess.run(command, input=value, check=True, timeout=30)


async def write(
    bootstrap: str, topic: str, records: Sequence[tuple[bytes | None, bytes | None, Headers]]
) -> None:
    """Writes (key, value, headers) with aiokafka, which takes null headers."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for key, value, headers in records:
            await producer.send_and_wait(topic, value, key=key, headers=list(headers))


def polled(bootstrap: str, topic: str = INTERACTIONS) -> list[Record]:
    """All that kafka-python's reader takes, from the beginning to the end."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    letters = DeadLetters(bootstrap, stage="test")
    with PartitionConsumer(bootstrap, [topic], offsets={}, dead_letters=letters, stage="test") as consumer:
        while sum(consumer.lag().values()):
            assert time.monotonic() < deadline, "the end was not reached"
            records += consumer.poll(500, 0.2)
    letters.close()
    return records


def tailed(bootstrap: str, topic: str = INTERACTIONS) -> list[Record]:
    """The same of aiokafka's."""
    return read_to_end(bootstrap, topic, timeout_s=PATIENCE_S)


def event_ids(records: Sequence[Record]) -> set[str]:
    return {record.message.event_id for record in records}


async def count_trends(bootstrap: str, folder: Path, item_ids: set[str]) -> None:
    """Runs faust's reader until it has counted all the items; fails the test if it does not."""
    worker = TrendsWorker(
        bootstrap, folder, meaning=EventMeaning(), on_ready=lambda: None, on_batch=lambda batch: None
    )
    task = asyncio.create_task(worker.run())
    until_s = time.monotonic() + PATIENCE_S
    try:
        while not item_ids <= await asyncio.to_thread(counted, bootstrap):
            assert time.monotonic() < until_s, "faust's reader did not count all items"
            assert not task.done(), task
            await asyncio.sleep(0.3)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def counted(bootstrap: str) -> set[str]:
    return {record.message.item_id for record in tailed(bootstrap, TRENDS)}


@pytest.mark.case("a valid event compressed with gzip, snappy, lz4, zstd by a C client")
async def test_every_codec_is_read(bootstrap: str, tmp_path: Path) -> None:
    events = [make_event() for _ in CODECS]
    for codec, event in zip(CODECS, events, strict=True):
        await asyncio.to_thread(kcat, bootstrap, as_json(event), "-z", codec, "-k", event.user_id)
    sent = {event.event_id for event in events}
    for read in (polled, tailed):
        assert sent <= event_ids(await asyncio.to_thread(read, bootstrap))
    await count_trends(bootstrap, tmp_path, {event.item_id for event in events})


@pytest.mark.case("a JSON event whose content-type header is null, then a good one")
async def test_odd_headers_and_keys_are_read(bootstrap: str, tmp_path: Path) -> None:
    null: list[tuple[str, bytes | None]] = [("content-type", None)]
    variants: list[tuple[Headers, bytes | None]] = [
        (null, b"k"),
        ([*null, ("content-type", JSON)], b"k"),
        ([("content-type", JSON), ("content-type", JSON), ("", b""), ("trace", None)], b"k"),
        ([("", None)] * 3, None),
        ([], b"\xff\xfe no text"),
    ]
    events = [make_event() for _ in variants]
    last = make_event()
    records = [(key, as_json(event), headers) for event, (headers, key) in zip(events, variants, strict=True)]
    await write(bootstrap, INTERACTIONS, [*records, (b"k", encode(last), ())])
    sent = {event.event_id for event in (*events, last)}
    for read in (polled, tailed):
        assert sent <= event_ids(await asyncio.to_thread(read, bootstrap))
    await count_trends(bootstrap, tmp_path, {event.item_id for event in (*events, last)})


@pytest.mark.case("one event whose header is named in bytes that are no UTF-8")
async def test_header_names_of_any_bytes_are_read(bootstrap: str, tmp_path: Path) -> None:
    events = [make_event() for _ in range(3)]
    for event, name in zip(events, (b"plain", b"caf\xe9", b"\xff\xfex"), strict=True):
        await asyncio.to_thread(kcat, bootstrap, as_json(event), "-k", event.user_id, "-H", name + b"=1")
    sent = {event.event_id for event in events}
    for read in (polled, tailed):
        records = await asyncio.to_thread(read, bootstrap)
        assert sent <= event_ids(records)
        places = [(record.partition, record.offset) for record in records]
        assert len(places) == len(set(places)), "a record was read twice"
    await count_trends(bootstrap, tmp_path, {event.item_id for event in events})


@pytest.mark.case("one click with a clock in 2100; one 23 h ahead; record times in seconds")
async def test_no_clock_but_ours_moves_the_readers(bootstrap: str, tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    far = make_event(event_time_ms=4_102_444_800_000)
    ahead = make_event(event_time_ms=now_ms + 23 * 3_600_000)
    plain = make_event()
    # each with a producer of its own: one whose record time Apache Kafka refuses (2100) is of no more use
    for event, timestamp_ms in (
        (far, 4_102_444_800_000),
        (far, None),
        (ahead, None),
        (plain, now_ms // 1000),
    ):
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        producer.send(INTERACTIONS, encode(event), timestamp_ms=timestamp_ms)
        producer.flush()
        producer.close()
    for read in (polled, tailed):
        times = {
            record.message.event_id: record.message.event_time_ms
            for record in await asyncio.to_thread(read, bootstrap)
        }
        assert far.event_id not in times
        assert now_ms - 60_000 <= times[ahead.event_id] <= time.time_ns() // 1_000_000
        assert times[plain.event_id] == plain.event_time_ms
    await count_trends(bootstrap, tmp_path, {ahead.item_id, plain.item_id})
    assert far.item_id not in await asyncio.to_thread(counted, bootstrap)


@pytest.mark.case("26 dead letters, redriven four times")
def test_one_record_is_one_letter_however_often_it_is_sent_again(bootstrap: str) -> None:
    mark = uuid.uuid4().hex[:8]
    with Producer(bootstrap) as producer:
        for n in range(26):
            producer.send_raw(INTERACTIONS, f"{mark}-{n}".encode(), b"{broken " + mark.encode(), ())
        producer.flush()

    def letters() -> list[Any]:
        return [
            one for one in list_dead_letters(bootstrap, INTERACTIONS) if mark.encode() in (one.value or b"")
        ]

    def read_by_all() -> None:
        for stage in ("projector", "learner"):
            rejecting = DeadLetters(bootstrap, stage=stage)
            with PartitionConsumer(
                bootstrap, [INTERACTIONS], offsets={}, dead_letters=rejecting, stage=stage
            ) as consumer:
                while sum(consumer.lag().values()):
                    consumer.poll(500, 0.2)
            rejecting.close()

    read_by_all()
    assert len(letters()) == 26
    assert {one.stages for one in letters()} == {("projector", "learner")}
    mine: Callable[[Any], bool] = lambda one: mark.encode() in (one.value or b"")  # noqa: E731
    for round_, (again, num_sent) in enumerate(((False, 26), (False, 0), (True, 26), (True, 26))):
        assert redrive(bootstrap, INTERACTIONS, again=again, select=mine) == num_sent
        read_by_all()
        assert len(letters()) == 26, round_
    assert {(one.num_failed, one.num_redriven) for one in letters()} == {(4, 3)}


@contextmanager
def open_transaction(bootstrap: str, events: Sequence[Event], *, commits: bool) -> Iterator[None]:
    """Events on partition 0 in a transaction that ends with the block: late, or by the next one's start."""
    settings: dict[str, Any] = {
        "bootstrap_servers": bootstrap,
        "transactional_id": f"test-{uuid.uuid4().hex}",
    }
    dead = KafkaProducer(**settings)
    dead.init_transactions()
    dead.begin_transaction()
    for event in events:
        dead.send(INTERACTIONS, value=encode(event), partition=0)
    dead.flush()
    try:
        yield
        if commits:
            dead.commit_transaction()
    finally:
        # who takes over its id aborts what it left open
        heir = KafkaProducer(**settings)
        heir.init_transactions()
        heir.close()
        dead.close(timeout=0)


@pytest.mark.container
@pytest.mark.case("24 events in a transaction whose producer died")
@pytest.mark.parametrize("commits", [False, True], ids=["aborted", "committed"])
def test_what_an_open_transaction_hides_is_lag(kafka_container: str, tmp_path: Path, commits: bool) -> None:
    create_topics(kafka_container, num_partitions=4, replication_factor=1)
    known = {record.message.event_id for record in polled(kafka_container)}
    place, others = f"{INTERACTIONS}/0", [f"{INTERACTIONS}/{n}" for n in range(1, 4)]
    settings = small_settings(kafka_container, tmp_path)
    figures = report.Figures()
    held, after = [make_event() for _ in range(24)], make_event()
    letters = DeadLetters(kafka_container, stage="test")
    with PartitionConsumer(
        kafka_container, [INTERACTIONS], offsets={}, dead_letters=letters, stage="test"
    ) as consumer:
        while sum(consumer.lag().values()):
            consumer.poll(500, 0.2)
        begin = consumer.offsets
        assert consumer.hidden() == dict.fromkeys([place, *others], 0)

        stream = LearnerStream(
            settings,
            LearnerPosition(live_release_id="r", offsets=begin),
            is_known=lambda item_id: True,
            insert=lambda sid: None,
        )

        def said() -> StatusResponse:
            report.count_lag(stream.lag(), stream.hidden(), figures)
            return report.status_response("learning", LearnerPosition(live_release_id="r"), figures)

        with stream:
            with open_transaction(kafka_container, held, commits=commits):
                assert (said().lag_records, said().stalled) == (
                    24,
                    f"24 records of {place} wait for an open transaction",
                )
                producer = KafkaProducer(bootstrap_servers=kafka_container)
                producer.send(INTERACTIONS, value=encode(after), partition=0)
                producer.flush()
                producer.close()
                assert stream.take() == consumer.poll(500, 1.0) == []
                assert consumer.lag() == consumer.hidden() == {place: 25} | dict.fromkeys(others, 0)
                labels = {"topic": INTERACTIONS, "partition": "0", "group": report.GROUP}
                said()
                assert REGISTRY.get_sample_value("headrace_stream_hidden_records", labels) == 25
                # an offset among the hidden ones is there: it is kept
                with PartitionConsumer(
                    kafka_container,
                    [INTERACTIONS],
                    offsets=begin | {place: begin[place] + 24},
                    dead_letters=letters,
                    stage="test",
                ) as other:
                    assert other.lag()[place] == 1
                    assert other.take_rewound() == {}
            # aborted: what it held is gone; and what was behind it comes
            deadline = time.monotonic() + PATIENCE_S
            learned = stream.take()
            while said().lag_records:
                assert time.monotonic() < deadline
                learned += stream.take()
            assert said().stalled == ""
            assert REGISTRY.get_sample_value("headrace_stream_hidden_records", labels) == 0
            expected = [event.event_id for event in [*(held if commits else []), after]]
            assert [record.message.event_id for record in learned] == expected
        seen = event_ids(polled(kafka_container))
    letters.close()
    assert seen == known | set(expected)


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


def test_reading_any_header_name_may_be_asked_for_twice() -> None:
    read_any_header_name()
    read_any_header_name()


@pytest.mark.container
@pytest.mark.case("a valid event compressed with gzip, snappy, lz4, zstd by a Java client")
def test_every_codec_of_a_java_client_is_read(kafka_container: str) -> None:
    create_topics(kafka_container, num_partitions=4, replication_factor=1)
    image = os.environ.get("KAFKA_TEST_IMAGE", DEFAULT_KAFKA_IMAGE)
    program = ["docker", "run", "--rm", "-i", "--network", "host", "--entrypoint", "java", image]
    program += ["-cp", "/opt/kafka/libs/*", "org.apache.kafka.tools.ConsoleProducer", "--topic", INTERACTIONS]
    events = [make_event() for _ in CODECS]
    for codec, event in zip(CODECS, events, strict=True):
        subprocess.run(
            [*program, "--bootstrap-server", kafka_container, "--compression-codec", codec],
            input=as_json(event) + b"\n",
            check=True,
            timeout=60,
        )
    sent = {event.event_id for event in events}
    assert sent <= event_ids(polled(kafka_container))
    assert sent <= event_ids(tailed(kafka_container))
