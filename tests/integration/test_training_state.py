"""Training never bricks the service: what it writes appears together or not at all, whoever ends it and when.

Real files, a real broker, a small model. `write_steps` stops the work before each of its writes.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from models.artifacts.manifest import FORMAT
from models.online.learner import OnlineLearner
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.generator_pb2 import Candidates, GenerateRequest
from protos.headrace.v1.generator_pb2_grpc import GeneratorServiceStub
from protos.headrace.v1.ranker_pb2 import RankRequest
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceStub
from protos.headrace.v1.release_pb2 import RELEASE_STATE_CANDIDATE, RELEASE_STATE_LIVE, Release
from services.cli.main import main
from services.generator import __main__ as generator
from services.learner.beginning import Beginning, CannotBegin, find_beginning
from services.learner.checkpoints import CheckpointStore
from services.learner.cold_start.deadline import Deadline
from services.learner.cold_start.publish import Trained, clear_remains, publish_training
from services.learner.cold_start.train import train_first_release
from services.learner.ledger import Ledger
from services.learner.loop import LearningLoop
from services.learner.release_desk import ReleaseDesk
from services.ranker import __main__ as ranker
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import Settings, StoreSettings, to_environment
from services.wire.translate import event_batch
from streaming.clients.producer import Producer
from streaming.messages.topics import INTERACTIONS
from tests.cases.world import HEADRACE, environment, write_world
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings
from tests.integration.serving import SERVING, health, own_broker, ready, serving, until
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


def write_as_before(directory: Path) -> None:
    """Makes a checkpoint or release one of the version before."""
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 0'))


@pytest.mark.case("state and release of the version before")
def test_what_the_version_before_wrote_is_named_and_gone_around(
    scene: Scene, watch: Watch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = watch.settings
    store, desk = CheckpointStore(settings.store.checkpoint_path), ReleaseDesk(settings)
    newest = store.newest_first()[0]
    write_as_before(newest)
    # the one before it is as good
    assert begin(settings).position.num_learned == NUM_OLD
    for directory in store.newest_first():
        write_as_before(directory)
    with store.lock():
        found = find_beginning(settings, store, desk, threading.Event())
    assert found is not None
    assert f"the checkpoint {newest} cannot be read (format: written in format 0" in found.problem
    assert f"began again from release {scene.old_id}" in found.problem

    write_as_before(settings.store.root / "releases" / scene.old_id)
    cure = "promote one that `headrace release list` shows as loadable, or run `headrace train`"
    with pytest.raises(CannotBegin, match=re.escape(cure)), store.lock():
        find_beginning(settings, store, desk, threading.Event())
    loadable = scene.as_release("20990101-000001-loadable")
    ReleasePublisher(settings).publish(loadable.bundle, RELEASE_STATE_CANDIDATE)
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["headrace", "release", "list", "--json"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main()
    listed = {one["release_id"]: one["problem"] for one in json.loads(capsys.readouterr().out)}
    assert listed[scene.old_id] == f"format: written in format 0, this version reads {FORMAT}"
    assert listed[loadable.release_id] == ""

    publish(settings, scene.as_release("20990101-000002-cure"))
    assert state_of(settings) == ("20990101-000002-cure", NUM_NEW)


@pytest.mark.case("a release whose files are missing goes live")
async def test_a_refused_release_ends_nobody(scene: Scene, watch: Watch) -> None:
    settings = watch.settings
    refused = scene.as_release("20990101-000003-refused").bundle
    await asyncio.to_thread(release_store(settings).save, refused)
    missing = settings.store.root / "releases" / refused.meta.release_id / "ranker.safetensors"
    content = missing.read_bytes()
    missing.unlink()
    loop = LearningLoop(settings)
    learning = asyncio.ensure_future(asyncio.to_thread(loop.run))
    try:
        async with (
            serving("generator", generator.serve, settings) as generating,
            serving("ranker", ranker.serve, settings) as ranking,
        ):
            await ready(generating)
            await ready(ranking)
            await until(is_true(lambda: loop.status.live_release_id == scene.old_id))
            publisher = ReleasePublisher(settings)
            await asyncio.to_thread(publisher.announce_stored, refused.meta.release_id, RELEASE_STATE_LIVE)
            loop.went_live(refused.meta.release_id)
            await until(is_true(lambda: loop.status.problem))
            assert "ranker.safetensors is missing" in loop.status.problem
            assert "put its files back, promote one" in loop.status.problem
            assert loop.status.state == "learning"
            assert await health(generating) == await health(ranking) == SERVING
            stub = GeneratorServiceStub(generating)
            assert (await stub.Generate(GenerateRequest(num_candidates=5))).release_id == scene.old_id
            rank = RankRequest(candidates=Candidates(item_ids=["item-0"], source_masks=[0], beam_scores=[0]))
            assert (await RankerServiceStub(ranking).Rank(rank)).release_id == scene.old_id

            await asyncio.to_thread(publisher.announce, scene.old_id, RELEASE_STATE_LIVE)
            loop.went_live(scene.old_id)
            await until(is_true(lambda: not loop.status.problem))

            missing.write_bytes(content)
            await asyncio.to_thread(publisher.announce, refused.meta.release_id, RELEASE_STATE_LIVE)

            async def taken() -> bool:
                return (
                    await stub.Generate(GenerateRequest(num_candidates=5))
                ).release_id == refused.meta.release_id

            await until(taken)
    finally:
        loop.stop()
        await learning


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    """For `until`."""

    async def holds() -> bool:
        return bool(condition())

    return holds


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
def test_a_learner_told_to_stop_in_the_midst_of_a_write_loses_nothing(scene: Scene, watch: Watch) -> None:
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


def test_a_limit_bounds_the_whole_training(scene: Scene, watch: Watch) -> None:
    """Without one, this would take hours; the first stages leave time for the last."""
    endless = replace(watch.settings.train, max_epochs=1_000_000, patience_epochs=1_000_000)
    settings = watch.settings.model_copy(update={"train": endless})
    world = make_world(NUM_OLD)
    deadline = Deadline(4.0)
    made = train_first_release(
        settings,
        world.items,
        world.events,
        offsets={},
        progress=lambda stage, done, total, figures: None,
        deadline=deadline,
    )
    assert deadline.used_s < 8.0
    assert state_of(settings) == (made.release.release_id, NUM_OLD)
