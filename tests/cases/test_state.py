"""Where state lives, as somebody in another folder sees it."""

import json
import time
from pathlib import Path

import pytest

from tests.cases.test_meaning import Record
from tests.cases.world import NUM_USERS, World, until

pytestmark = pytest.mark.integration


@pytest.mark.case("a second shell in another folder")
def test_a_command_finds_the_state_of_the_service_it_talks_to(
    world: World, tmp_path: Path, record_property: Record
) -> None:
    """`headrace up` runs elsewhere: nothing is read or written under the second shell's own folder."""
    root = world.settings.store.root
    here = tmp_path / "elsewhere"
    here.mkdir()
    began_s = time.monotonic()
    found = json.loads(world.headrace("state", "--json", folder=here).stdout)
    record_property("figure", f"`headrace state` took {time.monotonic() - began_s:.1f} s")
    assert found["root"] == str(root)
    assert found["answered_by"].startswith("the gateway at ")
    assert found["up_pid"] == int((root / "up.pid").read_text())
    assert found["live_known_by"] == "releases"
    assert found["live_release_id"] == world.status().live_release_id
    assert found["learner"] == "learning"
    assert found["checkpoint"]["problem"] == ""
    assert Path(found["checkpoint"]["path"]).parent == root / "learner"
    assert found["checkpoint"]["num_items"] >= 100
    assert found["num_users"] >= NUM_USERS
    assert found["broker_path"] == str(root / "broker")
    assert found["num_bytes"] > found["broker_bytes"] > 0
    assert f"{root} (told by the gateway" in world.headrace("state", folder=here).stdout

    listed = json.loads(world.headrace("release", "list", "--json", folder=here).stdout)
    assert found["live_release_id"] in [one["release_id"] for one in listed]

    trained = world.headrace("train", "--from-topic", "--json", folder=here)
    release_id = json.loads(trained.stdout)["release_id"]
    assert str(root) in trained.stderr
    assert (root / "releases" / release_id / "manifest.json").exists()
    until(lambda: world.status().live_release_id == release_id, "the learner takes it over")
    assert list(here.iterdir()) == []


@pytest.mark.case("a second shell that names another folder than the service's")
@pytest.mark.parametrize("arguments", [("state",), ("train", "--from-topic"), ("release", "list")])
def test_another_folder_is_refused_before_anything_is_done(
    world: World, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    other = tmp_path / "other"
    done = world.headrace(*arguments, check=False, folder=tmp_path, HEADRACE_STORE__ROOT=str(other))
    assert (done.returncode, done.stdout) == (1, "")
    line = " ".join(done.stderr.split())
    assert f"HEADRACE_STORE__ROOT is {other}" in line
    assert f"keeps its state in {world.settings.store.root}" in line
    assert "Traceback" not in line
    assert list(tmp_path.iterdir()) == []
