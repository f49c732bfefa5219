"""What a transaction that its producer left open hides, on the broker that has transactions."""

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from prometheus_client import REGISTRY

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.learner_pb2 import StatusResponse
from services.learner import report
from services.learner.position import LearnerPosition
from services.learner.stream import LearnerStream
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.clients.topic_admin import create_topics
from streaming.messages.codec import encode
from streaming.messages.topics import INTERACTIONS
from tests.integration.learner_world import small_settings
from tests.integration.odd_records.readers import PATIENCE_S, event_ids, make_event, polled


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


def send(bootstrap: str, event: Event) -> None:
    """On partition 0, in no transaction."""
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send(INTERACTIONS, value=encode(event), partition=0)
    producer.flush()
    producer.close()


def said(stream: LearnerStream, figures: report.Figures) -> StatusResponse:
    """What a learner with this stream answers when it is asked for its status."""
    report.count_lag(stream.lag(), stream.hidden(), figures)
    return report.status_response("learning", LearnerPosition(live_release_id="r"), figures)


def shown_as_hidden() -> float | None:
    """What the learner's metric says of partition 0."""
    labels = {"topic": INTERACTIONS, "partition": "0", "group": report.GROUP}
    return REGISTRY.get_sample_value("headrace_stream_hidden_records", labels)


def check_offset_is_kept(bootstrap: str, offsets: dict[str, int], letters: DeadLetters) -> None:
    """One among the hidden records, with one record after it, is there: the reader begins at it."""
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets=offsets, dead_letters=letters, stage="test"
    ) as other:
        assert other.lag()[f"{INTERACTIONS}/0"] == 1
        assert other.take_rewound() == {}


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
            insert_many=lambda sids: None,
        )
        with stream:
            with open_transaction(kafka_container, held, commits=commits):
                status = said(stream, figures)
                assert status.lag_records == 24
                assert status.stalled == f"24 records of {place} wait for an open transaction"
                send(kafka_container, after)
                assert stream.take() == consumer.poll(500, 1.0) == []
                assert consumer.lag() == consumer.hidden() == {place: 25} | dict.fromkeys(others, 0)
                said(stream, figures)
                assert shown_as_hidden() == 25
                check_offset_is_kept(kafka_container, begin | {place: begin[place] + 24}, letters)
            # aborted: what it held is gone; and what was behind it comes
            deadline = time.monotonic() + PATIENCE_S
            learned = stream.take()
            while said(stream, figures).lag_records:
                assert time.monotonic() < deadline
                learned += stream.take()
            assert said(stream, figures).stalled == ""
            assert shown_as_hidden() == 0
            expected = [event.event_id for event in [*(held if commits else []), after]]
            assert [record.message.event_id for record in learned] == expected
        seen = event_ids(polled(kafka_container))
    letters.close()
    assert seen == known | set(expected)
