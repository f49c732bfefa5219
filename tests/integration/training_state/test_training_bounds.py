"""A training that cannot be is refused at once, and one with a limit ends in time."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from services.learner.cold_start.deadline import Deadline
from services.learner.cold_start.train import train_first_release
from tests.cases.world import HEADRACE, environment, write_world
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings
from tests.integration.training_state.scene import NUM_OLD, Watch, state_of

pytestmark = pytest.mark.integration


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


def test_a_limit_bounds_the_whole_training(watch: Watch) -> None:
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
        progress=lambda *report: None,
        deadline=deadline,
    )
    assert deadline.used_s < 8.0
    assert state_of(settings) == (made.release.release_id, NUM_OLD)
