"""One training for the tests of a file, and a watch over a copy of it for each."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.learner.beginning import find_beginning
from services.learner.checkpoints import CheckpointStore
from services.learner.cold_start.train import train_first_release
from services.learner.release_desk import ReleaseDesk
from tests.integration.learner_world import make_world, small_settings
from tests.integration.serving import own_broker
from tests.integration.training_state.scene import NUM_NEW, NUM_OLD, Scene, Watch, second_training


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
            progress=lambda *report: None,
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
