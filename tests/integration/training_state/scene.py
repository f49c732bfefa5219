"""A folder with a trained state, another training beside it, and a watch over each step of some work.

Real files, a real broker, a small model. `write_steps` stops the work before each of its writes.
"""

import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from models.online.learner import OnlineLearner
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.learner.beginning import Beginning, find_beginning
from services.learner.checkpoints import CheckpointStore
from services.learner.cold_start.publish import Trained, clear_remains, publish_training
from services.learner.release_desk import ReleaseDesk
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import Settings, StoreSettings
from services.wire.translate import event_batch
from tests.integration.write_steps import before_each_step

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


def second_training(settings: Settings, learner: OnlineLearner, events: list[Event]) -> Trained:
    """The learner, the events since learned, as if it had been trained on all of them."""
    newest = events[NUM_OLD:]
    rows_N = learner.catalogue.rows([event.item_id for event in newest])
    learner.learn_many(event_batch(newest, rows_N, settings.meaning))
    bundle = learner.release_bundle(NEW_ID, parent_release_id="", created_time_ms=1, offsets={})
    learner.set_live(bundle)
    return Trained(learner=learner, bundle=bundle, event_ids=[event.event_id for event in events])
