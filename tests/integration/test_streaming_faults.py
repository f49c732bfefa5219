"""Streams when things die: the projector under kill -9, every client through the loss of its broker."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from protos.headrace.v1.events_pb2 import Action, Event
from services.errors import BackendUnavailable, InvalidSettings
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters, list_dead_letters
from streaming.clients.producer import AsyncProducer, Producer
from streaming.clients.tail import tail
from streaming.clients.topic_admin import create_topics
from streaming.errors import BrokerUnavailable
from streaming.histories.store import HistoryStore
from streaming.messages.topics import INTERACTIONS

REPOSITORY = Path(__file__).parents[2]
NUM_KILLS = 6
PROJECTOR = """
import sys, threading
from pathlib import Path
from streaming.clients.dead_letter import DeadLetters
from streaming.histories.store import HistoryStore
from streaming.histories.projector import project
bootstrap, path, stage = sys.argv[1:]
with HistoryStore.open(Path(path), read_only=False, max_events=100) as history:
    project(bootstrap, history, DeadLetters(bootstrap, stage=stage), stop=threading.Event(),
            on_batch=lambda report: print(report.num_events, flush=True))
"""


def make_event(user_id: str, item_id: str, event_id: str = "") -> Event:
    return Event(
        event_id=event_id or uuid.uuid4().hex,
        user_id=user_id,
        item_id=item_id,
        action=Action.ACTION_CLICK,
        event_time_ms=1_000_000_000_000,
    )


def end_offsets(bootstrap: str) -> dict[str, int]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    partitions = [TopicPartition(INTERACTIONS, n) for n in consumer.partitions_for_topic(INTERACTIONS)]
    ends = consumer.end_offsets(partitions)
    consumer.close()
    return {f"{INTERACTIONS}/{partition.partition}": end for partition, end in ends.items()}


class Stream(threading.Thread):
    """Sends events of 40 users, some of them twice, some of them broken, until it is told to stop."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.items: dict[str, list[str]] = defaultdict(list)
        self.num_broken = 0
        self._address = bootstrap
        self._prefix = prefix
        self._rng = random.Random(5)

    def run(self) -> None:
        with Producer(self._address) as producer:
            n = 0
            while not self.stop.is_set():
                for _ in range(60):
                    n += 1
                    user = f"{self._prefix}-{self._rng.randrange(40)}"
                    event = make_event(user, f"i{n}", event_id=f"e{n}")
                    self.items[user].append(event.item_id)
                    for _ in range(2 if self._rng.random() < 0.1 else 1):
                        producer.send(INTERACTIONS, user, event)
                    if self._rng.random() < 0.02:
                        producer.send_raw(INTERACTIONS, user.encode(), b"\xff broken")
                        self.num_broken += 1
                producer.flush()
                self.stop.wait(0.01)


def test_histories_hold_each_event_once_though_the_projector_is_killed(broker: str, tmp_path: Path) -> None:
    create_topics(broker, num_partitions=4, replication_factor=1)
    prefix = uuid.uuid4().hex[:8]
    begin = end_offsets(broker)
    path = tmp_path / "history"
    with HistoryStore.open(path, read_only=False) as store:
        store.apply([], begin)
    stream = Stream(broker, prefix)
    stream.start()
    rng = random.Random(11)
    try:
        for kill in range(NUM_KILLS + 1):
            if kill == NUM_KILLS:
                stream.stop.set()
                stream.join()
            process = subprocess.Popen(
                [sys.executable, "-c", PROJECTOR, broker, str(path), f"projector-{prefix}"],
                stdout=subprocess.PIPE,
                cwd=REPOSITORY,
            )
            with process:
                try:
                    assert process.stdout is not None
                    for _ in range(rng.randrange(1, 4)):
                        assert process.stdout.readline(), "the projector ended by itself"
                    time.sleep(rng.uniform(0, 0.05))
                    if kill == NUM_KILLS:
                        wait_for_offsets(path, end_offsets(broker))
                finally:
                    process.kill()
    finally:
        stream.stop.set()
        stream.join()
    with HistoryStore.open(path, read_only=True) as store:
        assert len(stream.items) == 40
        for user, items in stream.items.items():
            assert store.count(user) == len(items)
            assert [event.item_id for event in store.get(user, 1_000)] == items[-100:]
    letters = [x for x in list_dead_letters(broker, INTERACTIONS) if x.stage == f"projector-{prefix}"]
    assert len(letters) == stream.num_broken > 0


def wait_for_offsets(path: Path, ends: dict[str, int]) -> None:
    deadline = time.monotonic() + 30
    with HistoryStore.open(path, read_only=True) as store:
        while store.offsets() != ends:
            assert time.monotonic() < deadline, (store.offsets(), ends)
            time.sleep(0.05)


@pytest.fixture
def own_broker(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        yield broker


@pytest.mark.integration
async def test_producer_and_tail_go_on_after_a_restart_of_the_broker(own_broker: EmbeddedBroker) -> None:
    seen: list[str] = []
    arrived = asyncio.Event()

    async def follow() -> None:
        async for record in tail(own_broker.bootstrap, [INTERACTIONS]):
            seen.append(record.message.item_id)
            arrived.set()

    async def saw(items: set[str]) -> None:
        async with asyncio.timeout(30):
            while not items <= set(seen):
                arrived.clear()
                await arrived.wait()

    task = asyncio.create_task(follow())
    try:
        async with AsyncProducer(own_broker.bootstrap, timeout_s=1.0) as producer:
            for n in range(20):
                await producer.send(INTERACTIONS, f"u{n}", make_event(f"u{n}", f"i{n}"))
            await saw({f"i{n}" for n in range(20)})
            await asyncio.to_thread(own_broker.stop)
            with pytest.raises(BrokerUnavailable):
                await producer.send(INTERACTIONS, "u", make_event("u", "lost or late"))
            await asyncio.to_thread(own_broker.start)
            for n in range(20, 40):
                await send_until_confirmed(producer, make_event(f"u{n}", f"i{n}"))
            await saw({f"i{n}" for n in range(40)})
        assert set(seen) - {f"i{n}" for n in range(40)} <= {"lost or late"}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def send_until_confirmed(producer: AsyncProducer, event: Event) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await producer.send(INTERACTIONS, event.user_id, event)
            except BrokerUnavailable:
                await asyncio.sleep(0.1)


@pytest.mark.integration
def test_a_consumer_keeps_its_place_through_pause_and_restart(own_broker: EmbeddedBroker) -> None:
    def send(numbers: range) -> None:
        with Producer(own_broker.bootstrap) as producer:
            for n in numbers:
                producer.send(INTERACTIONS, f"u{n}", make_event(f"u{n}", f"i{n}"))
            producer.flush()

    letters = DeadLetters(own_broker.bootstrap, stage="test")
    seen: list[str] = []
    with PartitionConsumer(
        own_broker.bootstrap, [INTERACTIONS], offsets={}, dead_letters=letters, stage="test"
    ) as consumer:

        def read_to(num_records: int) -> None:
            deadline = time.monotonic() + 30
            while len(seen) < num_records:
                assert time.monotonic() < deadline, len(seen)
                seen.extend(record.message.item_id for record in consumer.poll(50, 0.5))

        send(range(30))
        read_to(30)
        assert own_broker.pid is not None
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            assert consumer.poll(50, 1.0) == []
            assert time.monotonic() - began_s < 3.0
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        send(range(30, 60))
        read_to(60)
        own_broker.stop()
        assert consumer.poll(50, 1.0) == []
        own_broker.start()
        send(range(60, 90))
        read_to(90)
        assert sum(consumer.offsets.values()) == 90
    assert sorted(seen) == sorted(f"i{n}" for n in range(90))


@pytest.mark.integration
def test_the_embedded_broker_says_what_is_wrong(
    own_broker: EmbeddedBroker, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with pytest.raises(BackendUnavailable, match="is taken"):
        EmbeddedBroker(tmp_path / "other", own_broker.bootstrap).start()
    with pytest.raises(BackendUnavailable, match="another broker"):
        EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}").start()
    with pytest.raises(InvalidSettings, match="loopback"):
        EmbeddedBroker(tmp_path / "other", "kafka.example.org:9092").start()


@pytest.mark.integration
async def test_nobody_there_is_broker_unavailable(free_port: Callable[[], int]) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    async with AsyncProducer(bootstrap, timeout_s=1.0) as producer:
        with pytest.raises(BrokerUnavailable, match=bootstrap):
            await producer.send(INTERACTIONS, "u", make_event("u", "i"))
    with pytest.raises(BrokerUnavailable, match=bootstrap):
        await asyncio.to_thread(Producer, bootstrap, timeout_s=0.5)
    with pytest.raises(BrokerUnavailable, match=bootstrap):
        await asyncio.to_thread(list_dead_letters, bootstrap, INTERACTIONS)
