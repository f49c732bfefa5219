"""A state or a release that cannot be read is named and gone around; it ends nobody."""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from models.artifacts.manifest import FORMAT
from protos.headrace.v1.generator_pb2 import Candidates, GenerateRequest
from protos.headrace.v1.generator_pb2_grpc import GeneratorServiceStub
from protos.headrace.v1.ranker_pb2 import RankRequest
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceStub
from protos.headrace.v1.release_pb2 import RELEASE_STATE_CANDIDATE, RELEASE_STATE_LIVE
from services.cli.main import main
from services.generator import __main__ as generator
from services.learner.beginning import CannotBegin, find_beginning
from services.learner.checkpoints import CheckpointStore
from services.learner.loop import LearningLoop
from services.learner.release_desk import ReleaseDesk
from services.ranker import __main__ as ranker
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import to_environment
from tests.integration.serving import SERVING, health, ready, serving, until
from tests.integration.training_state.scene import (
    NUM_NEW,
    NUM_OLD,
    Scene,
    Watch,
    begin,
    publish,
    state_of,
)

pytestmark = pytest.mark.integration


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
                answer = await stub.Generate(GenerateRequest(num_candidates=5))
                return bool(answer.release_id == refused.meta.release_id)

            await until(taken)
    finally:
        loop.stop()
        await learning


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    """For `until`."""

    async def holds() -> bool:
        return bool(condition())

    return holds
