"""The learner on a real broker: kill -9 loses and repeats nothing, and its RPCs do what they say."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE, RELEASE_STATE_RETIRED
from services.learner.beginning import Interrupted, learner_from_release
from services.learner.cold_start.train import train_first_release
from services.learner.loop import LearningLoop
from services.releases.publisher import ReleasePublisher
from services.settings import Settings, to_environment
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.dead_letter import list_dead_letters
from streaming.clients.follow import read_to_end
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import INTERACTIONS
from tests.conftest import find_free_port
from tests.factories import NUM_ITEMS, make_release
from tests.integration.learner_world import World, make_world, small_settings

pytestmark = pytest.mark.integration

NUM_TRAINED = 600


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    """A broker of this test's own, with the topics made."""
    with EmbeddedBroker(tmp_path / "broker", f"127.0.0.1:{find_free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        yield broker.bootstrap


@contextmanager
def learner_process(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m services.learner`, killed at the end if it still runs."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    log = settings.store.root / "learner.log"
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", "services.learner"],
            env=inherited | to_environment(settings) | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_learned(settings: Settings, num_learned: int, timeout_s: float = 90.0) -> learner_pb2.StatusResponse:
    """The first Status with so many learned events; fails the test when it does not come."""
    deadline = time.monotonic() + timeout_s
    status = learner_pb2.StatusResponse()
    with grpc.insecure_channel(settings.endpoints.address("learner")) as channel:
        stub = learner_pb2_grpc.LearnerServiceStub(channel)
        while time.monotonic() < deadline:
            try:
                status = stub.Status(learner_pb2.StatusRequest(), timeout=5.0)
            except grpc.RpcError:
                time.sleep(0.1)
                continue
            if status.num_events_learned >= num_learned:
                return status
            time.sleep(0.05)
    log = (settings.store.root / "learner.log").read_text()[-3000:]
    pytest.fail(f"{status.num_events_learned} of {num_learned} events learned ({status.state})\n{log}")


def train(settings: Settings, world: World) -> None:
    """The first release from the first events; the topics hold none of them."""
    train_first_release(
        settings,
        world.items,
        world.events[:NUM_TRAINED],
        offsets={},
        progress=lambda *report: None,
    )


def send(settings: Settings, events: list[Event]) -> None:
    """Writes events to the topic."""
    with Producer(settings.broker.bootstrap_servers) as producer:
        for event in events:
            producer.send(INTERACTIONS, event.user_id, event)
        producer.flush()


def ledger_of(settings: Settings) -> Counter[str]:
    """How often each event id was learned."""
    [path] = settings.store.checkpoint_path.glob("ledger-*.txt")
    return Counter(path.read_text().split())


def test_kill_9_loses_nothing_and_repeats_nothing(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path, checkpoint_interval_s=0.3, release_interval_events=1_000)
    world = make_world(2_400)
    train(settings, world)
    send(settings, world.events[NUM_TRAINED:])
    # what a producer sends twice is learned once
    send(settings, world.events[NUM_TRAINED : NUM_TRAINED + 50])
    for num_learned in (1_000, 1_700):
        with learner_process(settings) as process:
            wait_learned(settings, num_learned)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with learner_process(settings) as process:
        status = wait_learned(settings, len(world.events))
        assert status.state == "learning"
        assert {row.segment for row in status.quality} >= {"all", "old_item"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0

    ledger = ledger_of(settings)
    missing = {event.event_id for event in world.events} - set(ledger)
    twice = [event_id for event_id, count in ledger.items() if count > 1]
    assert (len(missing), len(twice), len(ledger)) == (0, 0, len(world.events))


def test_without_anything_new_no_checkpoint_is_written(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path, checkpoint_interval_s=0.1, release_interval_events=5_000)
    world = make_world(NUM_TRAINED + 200)
    train(settings, world)

    def newest() -> str:
        return max(path.name for path in settings.store.checkpoint_path.iterdir() if path.name.isdigit())

    with learner_process(settings):
        wait_learned(settings, NUM_TRAINED)
        time.sleep(1.0)
        idle = newest()
        time.sleep(1.0)
        assert newest() == idle
        send(settings, world.events[NUM_TRAINED:])
        wait_learned(settings, len(world.events))
        deadline = time.monotonic() + 10
        while newest() == idle and time.monotonic() < deadline:
            time.sleep(0.1)
        assert newest() > idle


def test_an_unknown_item_goes_to_the_dead_letters_and_holds_nobody_up(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path, unknown_item_grace_s=0.5)
    world = make_world(NUM_TRAINED + 200)
    train(settings, world)
    stranger = Event()
    stranger.CopyFrom(world.events[-1])
    stranger.event_id, stranger.item_id = "stranger", "never-announced"
    send(settings, [stranger, *world.events[NUM_TRAINED:]])
    with learner_process(settings):
        wait_learned(settings, len(world.events))
        deadline = time.monotonic() + 10
        while not (letters := list_dead_letters(bootstrap, INTERACTIONS)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert [(letter.reason, letter.stage) for letter in letters] == [("unknown_item", "learner")]
    assert "'never-announced' had no semantic id within 0.5 s" in letters[0].exception
    assert letters[0].value is not None
    assert Event.FromString(letters[0].value) == stranger


def test_a_release_of_another_log_is_begun_from_what_the_topic_has(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path)
    events = [event for event in make_world(300).events if int(event.item_id.split("-")[1]) < NUM_ITEMS]
    send(settings, events)
    records = read_to_end(bootstrap, INTERACTIONS)
    num_of = Counter(record.position for record in records)
    lost = {"interactions/0": 1_000_000, "interactions/1": 2, "interactions/7": 5}
    served: list[int] = []
    learner, position = learner_from_release(
        settings, make_release("r", offsets=lost), threading.Event(), lambda: served.append(1)
    )
    assert position.offsets == {"interactions/0": num_of["interactions/0"], "interactions/1": 2}
    assert position.num_learned == num_of["interactions/0"] + 2
    assert len(learner.memory.histories) > 0
    assert served

    stopping = threading.Event()
    with pytest.raises(Interrupted):
        learner_from_release(settings, make_release("r", offsets=lost), stopping, stopping.set)


def test_commands_are_answered_while_histories_are_read(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path)
    send(settings, make_world(20_000).events)
    ends = Counter(record.position for record in read_to_end(bootstrap, INTERACTIONS))
    ReleasePublisher(settings).publish(make_release("r", offsets=ends), RELEASE_STATE_LIVE)
    loop = LearningLoop(settings)
    seen: list[bool] = []
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        while not loop.is_learning:
            loop.submit(lambda: seen.append(loop.is_learning)).result(timeout=30)
    finally:
        loop.stop()
        thread.join(timeout=30)
    assert not thread.is_alive()
    # one a poll of a thousand events
    assert seen.count(False) > 10


def test_the_rpcs_pause_promote_and_roll_back(bootstrap: str, tmp_path: Path) -> None:
    settings = small_settings(bootstrap, tmp_path, release_interval_events=1_500)
    world = make_world(NUM_TRAINED + 1_600)
    train(settings, world)
    publisher = ReleasePublisher(settings)
    [first] = publisher.list()
    with learner_process(settings), grpc.insecure_channel(settings.endpoints.address("learner")) as channel:
        wait_learned(settings, NUM_TRAINED)
        stub = learner_pb2_grpc.LearnerServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="has no parent"):
            stub.Rollback(learner_pb2.RollbackRequest(reason="test"))
        stub.Pause(learner_pb2.PauseRequest())
        send(settings, world.events[NUM_TRAINED:])
        time.sleep(0.5)
        status = stub.Status(learner_pb2.StatusRequest())
        assert (status.state, status.num_events_learned) == ("paused", NUM_TRAINED)

        stub.Resume(learner_pb2.ResumeRequest())
        wait_learned(settings, len(world.events))
        checkpoint = stub.Checkpoint(learner_pb2.CheckpointRequest())
        assert checkpoint.num_events_learned == len(world.events)
        old, second = sorted(publisher.list(), key=lambda release: release.created_time_ms)
        assert second.state == RELEASE_STATE_LIVE, second.reason
        assert (old.release_id, old.state) == (first.release_id, RELEASE_STATE_RETIRED)
        assert (second.parent_release_id, second.state) == (first.release_id, RELEASE_STATE_LIVE)
        assert "not shown to be worse than the live release" in second.reason

        back = stub.Rollback(learner_pb2.RollbackRequest(reason="test")).release
        assert (back.release_id, back.state) == (first.release_id, RELEASE_STATE_LIVE)
        assert stub.Status(learner_pb2.StatusRequest()).live_release_id == first.release_id
        assert {release.release_id: release.reason for release in publisher.list()}[second.release_id] == (
            "rolled back: test"
        )

        promoted = stub.Promote(learner_pb2.PromoteRequest(release_id=second.release_id)).release
        assert promoted.state == RELEASE_STATE_LIVE
        with pytest.raises(grpc.RpcError, match="no release nowhere"):
            stub.Promote(learner_pb2.PromoteRequest(release_id="nowhere"))
