"""Records as foreign clients write them: every codec, any header, any time.

Each goes through the three real readers (kafka-python's, aiokafka's, faust's): taken, or rejected with a
reason; none ends a reader, and the end is reached.
"""

import asyncio
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters, list_dead_letters, redrive
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.header_names import read_any_header_name
from streaming.messages.codec import JSON, encode
from streaming.messages.meaning import EventMeaning
from streaming.messages.topics import INTERACTIONS, TRENDS
from streaming.trends.worker import TrendsWorker
from tests.conftest import DEFAULT_KAFKA_IMAGE
from tests.integration.odd_records.readers import (
    PATIENCE_S,
    Headers,
    as_json,
    event_ids,
    make_event,
    polled,
    tailed,
    write,
)

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def kcat(bootstrap: str, value: bytes, *arguments: str | bytes) -> None:
    """Writes one record with librdkafka, as any producer may."""
    program = shutil.which("kcat")
    if program is None:
        pytest.fail("this test needs kcat (Debian: apt-get install kcat)", pytrace=False)
    command = [program, "-P", "-b", bootstrap, "-t", INTERACTIONS, *arguments]
    subprocess.run(command, input=value, check=True, timeout=30)


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


@pytest.mark.integration
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
