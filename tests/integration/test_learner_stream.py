"""How the learner's stream is cut into batches, on the embedded broker."""

import time
from pathlib import Path

import pytest

from services.learner import stream
from services.learner.position import LearnerPosition
from services.learner.stream import LearnerStream
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import INTERACTIONS
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings

pytestmark = pytest.mark.integration

WAIT_S = 60.0


def test_events_that_have_waited_long_enough_wait_for_no_others(
    tmp_path: Path,
) -> None:
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{find_free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        events = make_world(20).events[:20]
        with Producer(broker.bootstrap) as producer:
            for event in events:
                producer.send(INTERACTIONS, event.user_id, event)
        settings = small_settings(broker.bootstrap, tmp_path, batch_wait_s=WAIT_S)
        position = LearnerPosition(live_release_id="r", offsets={})
        begin_s, taken = time.monotonic(), []
        with LearnerStream(
            settings, position, is_known=lambda item_id: True, insert_many=lambda sids: None
        ) as learned:
            while len(taken) < len(events):
                learned._taken_s = time.monotonic() - WAIT_S  # the batch before took that long to learn
                taken += [record.message.event_id for record in learned.take()]
        assert sorted(taken) == sorted(event.event_id for event in events)
        assert time.monotonic() - begin_s < WAIT_S


def test_a_stream_that_waits_for_items_alone_waits_asleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_DEFERRED", 5)
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{find_free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=1, replication_factor=1)
        with Producer(broker.bootstrap) as producer:
            for event in make_world(20).events[:20]:
                producer.send(INTERACTIONS, event.user_id, event)
        settings = small_settings(broker.bootstrap, tmp_path, batch_wait_s=1.0)
        position = LearnerPosition(live_release_id="r", offsets={})
        with LearnerStream(
            settings, position, is_known=lambda item_id: False, insert_many=lambda sids: None
        ) as learned:
            while len(learned.deferred()) < 5:
                assert learned.take() == []
            begin_s, num_taken = time.monotonic(), 0
            while time.monotonic() < begin_s + 2.0:
                assert learned.take() == []
                num_taken += 1
        assert num_taken < 10  # a thousand, where it does not sleep
