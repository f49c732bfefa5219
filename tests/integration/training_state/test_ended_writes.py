"""Training never bricks the service: what it writes appears together or not at all.

Whoever ends it and when: killed before any write, or told to stop in the midst of one.
"""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from protos.headrace.v1.release_pb2 import RELEASE_STATE_CANDIDATE, RELEASE_STATE_LIVE, Release
from services.learner.checkpoints import CheckpointStore
from services.learner.ledger import Ledger
from services.learner.loop import LearningLoop
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import Settings
from streaming.clients.producer import Producer
from streaming.messages.topics import INTERACTIONS
from tests.cases.world import environment
from tests.integration.learner_world import make_world
from tests.integration.training_state.scene import (
    NEW_ID,
    NUM_NEW,
    NUM_OLD,
    Scene,
    Watch,
    begin,
    clear,
    publish,
    state_of,
)
from tests.integration.write_steps import before_each_step

pytestmark = pytest.mark.integration


def test_a_training_killed_at_any_write_leaves_the_old_state_or_the_new(scene: Scene, watch: Watch) -> None:
    new = (NEW_ID, NUM_NEW)
    states = watch.over(lambda: publish(watch.settings, scene.trained))
    told = [step.startswith(("send", "flushed", "end")) for step, _ in watch.found]
    num_before = told.index(True)
    assert num_before > 40
    assert states[:num_before] == [scene.old] * num_before
    assert states[-2:] == [new, new]
    assert set(states) == {scene.old, new}


def test_what_a_killed_training_left_is_cleared_by_the_next(
    scene: Scene, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was killed; also where the next is killed while it clears."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> Release:
        raise Killed

    def clear_again(settings: Settings) -> None:
        clear(settings)
        assert [path.name for path in (settings.store.root / "releases").iterdir()] == [scene.old_id]
        assert not [*(settings.store.checkpoint_path / "trained").iterdir()]

    def publish_and_die() -> None:
        with pytest.raises(Killed):
            publish(watch.settings, scene.as_release("20990101-000000-killed"))

    watch.and_then = clear_again
    monkeypatch.setattr(ReleasePublisher, "announce_stored", die)
    assert set(watch.over(publish_and_die)) == {scene.old}
    num_before = len(watch.found)
    assert set(watch.over(lambda: clear(watch.settings))) == {scene.old}
    assert len(watch.found) - num_before > 30


def test_a_learner_killed_while_it_takes_a_training_over_takes_it_over_again(
    scene: Scene, watch: Watch
) -> None:
    publish(watch.settings, scene.trained)
    states = watch.over(lambda: begin(watch.settings))
    assert len(states) > 4
    assert set(states) == {(NEW_ID, NUM_NEW)}


def test_a_learners_checkpoint_killed_at_any_write_is_whole_or_absent(scene: Scene, watch: Watch) -> None:
    store = CheckpointStore(watch.settings.store.checkpoint_path)

    def checkpoint() -> None:
        position = begin(watch.settings).position
        with Ledger(store.ledger_path(position.ledger_name), num_bytes=position.ledger_bytes) as ledger:
            ledger.append(scene.trained.event_ids[NUM_OLD:])
            position.ledger_bytes = ledger.flush()
        position.num_learned = NUM_NEW
        store.save(scene.trained.learner, position)

    states = watch.over(checkpoint)
    assert states == sorted(states)
    assert set(states) == {scene.old, (scene.old_id, NUM_NEW)}


def test_a_learners_release_killed_at_any_write_is_live_or_not(scene: Scene, watch: Watch) -> None:
    def cut() -> None:
        publisher = ReleasePublisher(watch.settings)
        publisher.publish(scene.trained.bundle, RELEASE_STATE_CANDIDATE)
        publisher.announce(NEW_ID, RELEASE_STATE_LIVE)

    states = watch.over(cut)
    assert set(states) == {scene.old, (NEW_ID, NUM_OLD)}
    assert states[-1] == (NEW_ID, NUM_OLD)


NUM_STREAMED = 900
_TERMINATES_AT_RELEASE = """
import os, signal, sys
def hear(event, arguments):
    if event == "os.rename" and "/releases/" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hear)
from services.learner.__main__ import main
main()
"""


@pytest.mark.case("SIGTERM at the very step of a checkpoint and of a release")
def test_a_learner_told_to_stop_in_the_midst_of_a_write_loses_nothing(watch: Watch) -> None:
    service = replace(watch.settings.learner_service, checkpoint_interval_s=0.0, release_interval_events=30)
    settings = watch.settings.model_copy(update={"learner_service": service})
    events = make_world(NUM_NEW + NUM_STREAMED).events[NUM_NEW:]
    with Producer(settings.broker.bootstrap_servers) as producer:
        for event in events:
            producer.send(INTERACTIONS, event.user_id, event)
        producer.flush()

    done = subprocess.run(
        [sys.executable, "-c", _TERMINATES_AT_RELEASE],
        env=environment(settings),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2_000:]
    num_learned = [NUM_OLD, check_stopped(settings)]
    for step in (
        "open /learner/.",
        "os.rename /learner/.",
        "open /releases/.",
        "os.rename /releases/.",
        "send to releases",
    ):
        loop = LearningLoop(settings)

        def stop(name: str, loop: LearningLoop = loop, step: str = step) -> None:
            if name.startswith(step) and loop.status.num_events_learned:
                loop.stop()

        patience = threading.Timer(20, loop.stop)
        patience.start()
        before_each_step(loop.run, str(settings.store.root), stop)
        assert patience.is_alive(), f"no step {step}"
        patience.cancel()
        num_learned.append(check_stopped(settings))
    assert num_learned == sorted(set(num_learned))
    assert num_learned[-1] < NUM_OLD + NUM_STREAMED

    loop = LearningLoop(settings)
    learning = threading.Thread(target=loop.run)
    learning.start()
    deadline = time.monotonic() + 30
    while loop.status.num_events_learned < NUM_OLD + NUM_STREAMED and time.monotonic() < deadline:
        time.sleep(0.05)
    loop.stop()
    learning.join()
    assert check_stopped(settings) == NUM_OLD + NUM_STREAMED


def check_stopped(settings: Settings) -> int:
    """How many events were learned, each once; everything is whole, and nothing half-written is left."""
    assert not [*settings.store.root.rglob(".*.tmp")]
    store = release_store(settings)
    for release in ReleasePublisher(settings).list():
        path = settings.store.root / "releases" / release.release_id
        assert not path.exists() or not store.problem(release.release_id)
    return state_of(settings)[1]
