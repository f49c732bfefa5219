"""Training never bricks the service: what it writes appears together or not at all, whoever ends it and when.

Real files, a real broker, a small model. `write_steps` stops the work before each of its writes.
"""

import os
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from models.learner import OnlineLearner
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.release_pb2 import RELEASE_STATE_CANDIDATE, RELEASE_STATE_LIVE, Release
from services.cold_start import train_first_release
from services.first_release import Trained, clear_remains, publish_training
from services.learner.checkpoints import CheckpointStore
from services.learner.ledger import Ledger
from services.learner.releases import ReleaseDesk
from services.learner.start import Beginning, find_beginning
from services.release import ReleasePublisher, release_store
from services.settings import Settings, StoreSettings
from services.translate import event_batch
from tests.cases.world import HEADRACE, environment, write_world
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings
from tests.integration.serving import own_broker
from tests.integration.write_steps import before_each_step

pytestmark = pytest.mark.integration

NUM_OLD, NUM_NEW = 200, 250
NEW_ID = "20990101-000000-new"


State = tuple[str, int]
"""The release that is live, and how many events the learner that starts then has learned."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A folder with a trained state, never written; copies of it; and a second training, not written yet."""

    settings: Settings
    old_id: str
    trained: Trained

    def copy(self, root: Path) -> Settings:
        """Settings with a state folder of their own, and the old release live."""
        shutil.copytree(self.settings.store.root, root)
        if live(self.settings) != self.old_id:
            ReleasePublisher(self.settings).announce(self.old_id, RELEASE_STATE_LIVE)
        return self.settings.model_copy(update={"store": StoreSettings(root=root)})

    @property
    def old(self) -> State:
        """Before anything else was written."""
        return self.old_id, NUM_OLD

    def as_release(self, release_id: str) -> Trained:
        """The second training under another name: what the topic has heard of stays known to it."""
        bundle = self.trained.bundle
        return replace(self.trained, bundle=replace(bundle, meta=replace(bundle.meta, release_id=release_id)))


class Watch:
    """Looks at a state folder before each step of some work, as services would that start then."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._seen: dict[object, State] = {}
        self.found: list[tuple[str, State]] = []
        self.and_then: Callable[[Settings], None] = lambda settings: None

    def over(self, work: Callable[[], object]) -> list[State]:
        """The state that was found before each step, and at the end."""
        before_each_step(work, str(self.settings.store.root), self._look)
        return [state for _, state in self.found]

    def _look(self, step: str) -> None:
        root = self._folder / f"step-{len(self.found)}"
        shutil.copytree(self.settings.store.root, root)
        copied = self.settings.model_copy(update={"store": StoreSettings(root=root)})
        # what looks the same is the same; what is half-written differs in every run
        looks_like = (live(copied), *_names_and_sizes(root))
        if looks_like not in self._seen:
            self._seen[looks_like] = state_of(copied)
            self.and_then(copied)
        shutil.rmtree(root)
        self.found.append((step, self._seen[looks_like]))


def _names_and_sizes(root: Path) -> list[tuple[str, int]]:
    found = set()
    for path in root.rglob("*"):
        name = re.sub(r"/\.[^/]*\.tmp(/.*)?", "/half-written", str(path.relative_to(root)))
        found.add((name, path.stat().st_size if path.is_file() and "half-written" not in name else -1))
    return sorted(found)


def live(settings: Settings) -> str:
    """The release that the topic says is live."""
    release = ReleaseDesk(settings).live()
    assert release is not None
    return release.release_id


def begin(settings: Settings) -> Beginning:
    """What a learner that starts now goes on from."""
    store = CheckpointStore(settings.store.checkpoint_path)
    with store.lock():
        found = find_beginning(settings, store, ReleaseDesk(settings), threading.Event())
    assert found is not None
    assert not found.problem
    return found


def state_of(settings: Settings) -> State:
    """What a learner and services that start now find, wholly."""
    release_id = live(settings)
    release_store(settings).load(release_id)
    found = begin(settings)
    assert found.position.live_release_id == release_id
    assert found.learner.num_learned == found.position.num_learned
    path = CheckpointStore(settings.store.checkpoint_path).ledger_path(found.position.ledger_name)
    with path.open("rb") as ledger:
        lines = Counter(ledger.read(found.position.ledger_bytes).split())
    assert len(lines) == lines.total() == found.position.num_learned
    return release_id, found.position.num_learned


def publish(settings: Settings, trained: Trained) -> None:
    """A training becomes what everybody serves."""
    with CheckpointStore(settings.store.checkpoint_path).training_lock():
        publish_training(settings, trained, "test")


def clear(settings: Settings) -> None:
    """What the next training does first."""
    with CheckpointStore(settings.store.checkpoint_path).training_lock():
        clear_remains(settings)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One training, taken over by a learner; and the same learner fifty events later as a second training."""
    root = tmp_path_factory.mktemp("training")
    with own_broker(root / "broker") as bootstrap:
        settings = small_settings(bootstrap, root / "state")
        world = make_world(NUM_NEW)
        old = train_first_release(
            settings,
            world.items,
            world.events[:NUM_OLD],
            offsets={},
            progress=lambda stage, done, total, figures: None,
        )
        store = CheckpointStore(settings.store.checkpoint_path)
        with store.lock():
            found = find_beginning(settings, store, ReleaseDesk(settings), threading.Event())
            assert found is not None
            store.save(found.learner, found.position)
        trained = second_training(settings, found.learner, world.events)
        yield Scene(settings=settings, old_id=old.release.release_id, trained=trained)


@pytest.fixture
def watch(scene: Scene, tmp_path: Path) -> Watch:
    """On a copy of the old state."""
    return Watch(scene.copy(tmp_path / "state"), tmp_path)


def second_training(settings: Settings, learner: OnlineLearner, events: list[Event]) -> Trained:
    """The learner, the events since learned, as if it had been trained on all of them."""
    newest = events[NUM_OLD:]
    rows_N = learner.catalogue.rows([event.item_id for event in newest])
    learner.learn_many(event_batch(newest, rows_N, settings.meaning))
    bundle = learner.release_bundle(NEW_ID, parent_release_id="", created_time_ms=1, offsets={})
    learner.set_live(bundle)
    return Trained(learner=learner, bundle=bundle, event_ids=[event.event_id for event in events])


def test_a_training_killed_at_any_write_leaves_the_old_state_or_the_new(scene: Scene, watch: Watch) -> None:
    new = (NEW_ID, NUM_NEW)
    states = watch.over(lambda: publish(watch.settings, scene.trained))
    told = [step.startswith(("send", "flushed", "end")) for step, _ in watch.found]
    num_before = told.index(True)
    assert num_before > 50
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


@pytest.mark.case("everything stopped, `headrace train --data F` without a broker, then `up`")
def test_without_a_broker_training_is_refused_in_the_first_second(tmp_path: Path) -> None:
    settings = small_settings(f"127.0.0.1:{find_free_port()}", tmp_path / "state")
    folder = tmp_path / "data"
    write_world(folder)
    command = [*HEADRACE, "train", "--data", str(folder)]
    before = os.times().children_user
    done = subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=60)
    # of CPU time, about 0.7 s: the machine may be busy with others
    assert os.times().children_user - before < 1.5
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "no broker answers" in line
    assert "start `headrace up`" in line
    assert not settings.store.root.exists()
