"""Releases between publisher and watcher: which is live, what is refused, stores that are not local."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from models.artifacts.release import ReleaseBundle
from models.errors import IncompatibleCheckpoint
from protos.headrace.v1.release_pb2 import (
    RELEASE_STATE_CANDIDATE,
    RELEASE_STATE_LIVE,
    RELEASE_STATE_RETIRED,
    Release,
)
from services.errors import NotFound
from services.metrics import RELEASE_SWAPS
from services.releases.publisher import ReleasePublisher
from services.releases.store import ReleaseStore
from services.releases.watcher import ReleaseWatcher
from services.settings import Settings, StoreSettings
from streaming.messages.topics import RELEASES
from tests.factories import make_release
from tests.integration.serving import make_settings, own_broker, send, until

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with own_broker(tmp_path / "broker") as bootstrap:
        yield make_settings(bootstrap, tmp_path)


class Watching:
    """A watcher that notes what goes live; refuses releases whose id begins with "bad"."""

    def __init__(self, settings: Settings) -> None:
        self.seen: list[str] = []
        self.watcher = ReleaseWatcher(settings, self._take, services=["generator"])

    async def _take(self, release: Release, bundle: ReleaseBundle) -> None:
        assert bundle.meta.release_id == release.release_id
        if release.release_id.startswith("bad"):
            raise IncompatibleCheckpoint("statistics", "does not fit")
        self.seen.append(release.release_id)

    async def until_seen(self, *release_ids: str) -> None:
        async def has_seen() -> bool:
            return self.seen == list(release_ids)

        await until(has_seen)


@contextlib.asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watching]:
    watch = Watching(settings)
    task = asyncio.ensure_future(watch.watcher.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def publish(
    settings: Settings, release_id: str, state: int = RELEASE_STATE_LIVE, parent: str = ""
) -> None:
    bundle = make_release(release_id, parent=parent)
    await asyncio.to_thread(ReleasePublisher(settings).publish, bundle, state)  # type: ignore[arg-type]


async def test_the_newest_live_record_is_served(settings: Settings) -> None:
    publisher = ReleasePublisher(settings)
    async with watching(settings) as watch:
        await publish(settings, "a")
        await watch.until_seen("a")
        await publish(settings, "b", RELEASE_STATE_CANDIDATE)
        await publish(settings, "c", parent="a")
        await watch.until_seen("a", "c")
        await asyncio.to_thread(publisher.announce, "b", RELEASE_STATE_LIVE, "by hand")
        await watch.until_seen("a", "c", "b")
        await asyncio.to_thread(publisher.announce, "a", RELEASE_STATE_LIVE, "rolled back")
        await watch.until_seen("a", "c", "b", "a")
    releases = await asyncio.to_thread(publisher.list)
    states = {release.release_id: release.state for release in releases}
    assert states == {"a": RELEASE_STATE_LIVE, "b": RELEASE_STATE_RETIRED, "c": RELEASE_STATE_RETIRED}
    assert {release.release_id: release.reason for release in releases}["c"] == "b went live"
    # a service that starts now serves the live one only
    async with watching(settings) as late:
        await late.until_seen("a")
    with pytest.raises(NotFound):
        await asyncio.to_thread(publisher.announce, "z", RELEASE_STATE_LIVE)


async def test_a_refused_release_changes_nothing(settings: Settings) -> None:
    async with watching(settings) as watch:
        await publish(settings, "a")
        await watch.until_seen("a")
        # One after the other: of records that come together, only the newest is looked at.
        async with refused_once("statistics"):
            await publish(settings, "bad", parent="a")
        async with refused_once("missing_file"):
            # the first is no release at all, but a malformed record
            for release_id in ("../a", "nowhere"):
                release = Release(release_id=release_id, state=RELEASE_STATE_LIVE)
                await asyncio.to_thread(send, settings, RELEASES, (release_id, release))
        assert watch.watcher.wanted_release_id == "nowhere"
        assert "../a" not in await asyncio.to_thread(ReleasePublisher(settings).list)
        assert watch.seen == ["a"]
        assert watch.watcher.live is not None
        assert watch.watcher.live.release_id == "a"


@contextlib.asynccontextmanager
async def refused_once(reason: str) -> AsyncIterator[None]:
    """What the block announces is refused for this reason, once."""
    counter = RELEASE_SWAPS.labels("refused", reason)
    before = counter._value.get()
    yield

    async def counted() -> bool:
        return bool(counter._value.get() == before + 1)

    await until(counted)


async def test_a_start_on_a_refused_release_takes_its_parent(settings: Settings) -> None:
    await publish(settings, "a")
    await publish(settings, "bad-1", parent="a")
    await publish(settings, "bad-2", parent="bad-1")
    async with watching(settings) as watch:
        await watch.until_seen("a")
        await publish(settings, "b", parent="bad-2")
        await watch.until_seen("a", "b")


async def test_a_store_that_is_not_local(settings: Settings, tmp_path: Path) -> None:
    remote = settings.model_copy(
        update={"store": replace(settings.store, root=tmp_path, releases="memory://releases")}
    )
    assert isinstance(remote.store, StoreSettings)
    async with watching(remote) as watch:
        await publish(remote, "r-1")
        await watch.until_seen("r-1")
    assert (tmp_path / "release-cache" / "r-1" / "manifest.json").is_file()


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    store = ReleaseStore("memory://repair", tmp_path / "cache")
    store.save(make_release("r-2"))
    store.load("r-2")
    (tmp_path / "cache" / "r-2" / "ranker.safetensors").write_bytes(b"")
    with pytest.raises(IncompatibleCheckpoint):
        store.load("r-2")
    assert store.load("r-2").meta.release_id == "r-2"
    with pytest.raises(IncompatibleCheckpoint) as caught:
        store.load("r-3")
    assert caught.value.reason == "missing_file"
