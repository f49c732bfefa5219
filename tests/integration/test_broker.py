"""The embedded broker as a process: what it confirmed survives its death, and no bytes end it."""

import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, UnknownError
from kafka.protocol.consumer import FetchRequest
from kafka.structs import OffsetAndMetadata

from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.topic_admin import create_topics, existing_topics
from streaming.errors import BrokerUnavailable
from streaming.messages.topics import INTERACTIONS, ITEMS

pytestmark = pytest.mark.integration


def write(bootstrap: str, values: list[bytes]) -> None:
    """Returns when every one is acknowledged."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    for sent in [producer.send(INTERACTIONS, value) for value in values]:
        sent.get(30)
    producer.close()


def read(bootstrap: str, topic: str = INTERACTIONS) -> list[bytes]:
    """All values of a topic."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic, i) for i in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    values: list[bytes] = []
    deadline = time.monotonic() + 30
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        assert time.monotonic() < deadline
        for records in consumer.poll(200).values():
            values += [record.value for record in records]
    consumer.close()
    return values


@pytest.mark.case("the embedded broker killed right after 60 acknowledged events")
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, free_port: Callable[[], int]) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}")
    sent: list[bytes] = []
    for round_ in range(3):
        broker.start()
        create_topics(broker.bootstrap, num_partitions=4, replication_factor=1)
        assert sorted(read(broker.bootstrap)) == sorted(sent)
        new = [f"{round_}-{i}".encode() for i in range(60)]
        write(broker.bootstrap, new)
        sent += new
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        broker.stop()
    with broker:
        assert sorted(read(broker.bootstrap)) == sorted(sent)


def test_groups_settings_and_positions_survive(tmp_path: Path, free_port: Callable[[], int]) -> None:
    place, commit = TopicPartition(INTERACTIONS, 2), OffsetAndMetadata(17, "note", -1)
    broker = EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}")
    with broker:
        create_topics(broker.bootstrap, num_partitions=4, replication_factor=1)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        admin.alter_group_offsets("readers", {place: commit})
        admin.create_topics({"short": {"num_partitions": 1, "replication_factor": 1}})
        admin.delete_topics([ITEMS])
        admin.close()
    with broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        (offsets,) = admin.list_group_offsets(["readers"]).values()
        assert (offsets[place].offset, offsets[place].metadata) == (17, "note")
        topics = existing_topics(broker.bootstrap)
        assert "short" in topics
        assert ITEMS not in topics
        admin.close()


def test_no_bytes_end_it(tmp_path: Path, free_port: Callable[[], int]) -> None:
    rng = random.Random(0)
    port = free_port()
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{port}") as broker:
        create_topics(broker.bootstrap, num_partitions=4, replication_factor=1)
        write(broker.bootstrap, [b"before"])
        for round_ in range(300):
            body = rng.randbytes(rng.randrange(200))
            if round_ % 3:  # a known kind of request with bytes of no meaning
                body = (
                    struct.pack(">hhih", rng.choice([0, 1, 2, 3, 8, 11, 14, 18, 19, 36, 44]), 0, 1, -1) + body
                )
                body = body[:2] + struct.pack(">h", rng.randrange(10)) + body[4:]
            size = len(body) if round_ % 7 else rng.randrange(-(1 << 31), 1 << 31)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(struct.pack(">i", size) + body)
        write(broker.bootstrap, [b"after"])
        assert sorted(read(broker.bootstrap)) == [b"after", b"before"]


def test_who_asks_and_never_reads_fills_no_memory(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{port}") as broker:
        create_topics(broker.bootstrap, num_partitions=1, replication_factor=1)
        write(broker.bootstrap, [bytes(500_000)] * 20)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(fetch_request(50 << 20) * 60)
            time.sleep(2.0)
            assert resident_mb(broker.pid) < 300  # sixty answers of 10 MB would be 600
            write(broker.bootstrap, [b"others go on"])


def test_who_asks_for_less_than_one_batch_gets_one(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{port}") as broker:
        create_topics(broker.bootstrap, num_partitions=1, replication_factor=1)
        write(broker.bootstrap, [bytes(500_000)] * 2)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(fetch_request(0))
            assert 500_000 < int.from_bytes(connection.recv(4), "big") < 1_000_000


def fetch_request(max_bytes: int) -> bytes:
    """A request for the records of the first partition, answered at once, as it goes over the wire."""
    partition = FetchRequest.FetchTopic.FetchPartition(
        partition=0, fetch_offset=0, partition_max_bytes=max_bytes
    )
    request = FetchRequest(
        replica_id=-1,
        max_wait_ms=0,
        min_bytes=1,
        max_bytes=50 << 20,
        isolation_level=0,
        topics=[FetchRequest.FetchTopic(topic=INTERACTIONS, partitions=[partition])],
        version=4,
    )
    request.with_header(correlation_id=1)
    encoded: bytes = request.encode(header=True, framed=True)
    return encoded


def resident_mb(pid: int | None) -> float:
    """What a process has in memory, in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} tells no VmRSS")


def test_a_full_disk_refuses_and_keeps_nothing_of_it(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    command = (
        f"ulimit -S -f 64; exec {sys.executable} -m streaming.broker --folder {tmp_path / 'b'} --port {port}"
    )
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.DEVNULL)
    try:
        wait_for(f"127.0.0.1:{port}")
        create_topics(f"127.0.0.1:{port}", num_partitions=1, replication_factor=1)
        write(f"127.0.0.1:{port}", [b"small"])
        # patient, as clients are by default: what was refused must not be written once there is room again
        producer = KafkaProducer(bootstrap_servers=f"127.0.0.1:{port}", delivery_timeout_ms=60_000)
        with pytest.raises(UnknownError):
            producer.send(INTERACTIONS, b"x" * 100_000).get(20)  # no file may grow beyond 64 KiB
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        producer.flush()
        producer.close()
        write(f"127.0.0.1:{port}", [b"small too"])
        assert read(f"127.0.0.1:{port}") == [b"small", b"small too"]
    finally:
        process.kill()
        process.wait()
    with EmbeddedBroker(tmp_path / "b", f"127.0.0.1:{port}") as broker:
        assert read(broker.bootstrap) == [b"small", b"small too"]


def test_a_record_beyond_the_limit_is_refused_by_name(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=1, replication_factor=1)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=20 << 20)
        with pytest.raises(MessageSizeTooLargeError):
            producer.send(INTERACTIONS, b"x" * (9 << 20)).get(20)
        producer.close()


def test_what_needs_transactions_is_refused_at_once(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=1, replication_factor=1)
        producer = KafkaProducer(
            bootstrap_servers=broker.bootstrap, transactional_id=uuid.uuid4().hex, max_block_ms=3_000
        )
        with pytest.raises(KafkaError):
            producer.init_transactions()
        producer.close()


def wait_for(bootstrap: str) -> None:
    """Returns once a broker answers."""
    for _ in range(100):
        try:
            existing_topics(bootstrap, timeout_s=1.0)
            return
        except BrokerUnavailable:
            time.sleep(0.1)
    pytest.fail(f"no broker at {bootstrap}")
