"""Releases between the learner and the services: the store, the topic `releases`, and who is live.

The store is a folder or any fsspec URL; a release is the directory `{store}/{release_id}`. The newest record
in state LIVE names the release that everybody serves. What is in a release is the business of
`models.artifacts.release`; what to do with one, of the service that watches. Only who saves or loads one
imports torch.
"""

import asyncio
import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem

from models.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from models.artifacts.release_meta import release_meta
from models.errors import IncompatibleCheckpoint
from protos.headrace.v1.release_pb2 import Release, ReleaseFile, ReleaseState
from services.errors import NotFound
from services.memory import give_back
from services.metrics import RELEASE_CREATED, RELEASE_INFO, RELEASE_LOAD_SECONDS, RELEASE_SWAPS
from services.settings import Settings
from streaming.clients.follow import follow, read_to_end
from streaming.clients.producer import Producer
from streaming.messages.records import Record, offset_messages
from streaming.messages.topics import RELEASES

if TYPE_CHECKING:
    from models.artifacts.release import ReleaseBundle

LIVE = ReleaseState.RELEASE_STATE_LIVE
_RETIRED = ReleaseState.RELEASE_STATE_RETIRED
# It names a directory, so it may hold no separator.
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FIRST_RETRY_S = 2.0
_MAX_RETRY_S = 30.0
_UNREACHABLE = "unreachable"
# What a file that appears, or is copied to its end, mends; what is whole and does not fit stays refused.
_MENDABLE = frozenset({_UNREACHABLE, "missing_file", "size", "checksum"})

log = structlog.get_logger()


class ReleaseStore:
    """Directories of releases under one fsspec URL; `cache` holds copies of what is not local."""

    def __init__(self, url: str, cache: Path) -> None:
        self._fs, self._root = fsspec.url_to_fs(url)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._cache = cache

    def save(self, bundle: "ReleaseBundle") -> Manifest:
        """Writes a new release, its manifest last: a reader finds all of it or no manifest."""
        from models.artifacts.release import save_release

        _require_safe(bundle.meta.release_id)
        if self._is_local:
            return save_release(Path(self._root), bundle)
        with tempfile.TemporaryDirectory() as folder:
            manifest = save_release(Path(folder), bundle)
            source = Path(folder) / bundle.meta.release_id
            target = f"{self._root}/{bundle.meta.release_id}"
            self._fs.makedirs(target, exist_ok=True)
            for name in [*(file.name for file in manifest.files), MANIFEST_NAME]:
                self._fs.put_file(str(source / name), f"{target}/{name}")
        return manifest

    def manifest(self, release_id: str) -> Manifest:
        """A release's manifest, its files not looked at; raises what `load` raises."""
        _require_safe(release_id)
        return read_manifest(Path(self._root) / release_id if self._is_local else self._fetched(release_id))

    def problem(self, release_id: str) -> str:
        """Why this version cannot load a release, one line; empty if it can.

        By its manifest and its files' sizes: what is in them is verified when it is loaded.
        """
        try:
            _require_safe(release_id)
            with tempfile.TemporaryDirectory() as folder:
                place = f"{self._root}/{release_id}"
                self._fs.get_file(f"{place}/{MANIFEST_NAME}", str(Path(folder) / MANIFEST_NAME))
                manifest = read_manifest(Path(folder))
            release_meta(manifest)
            for file in manifest.files:
                size = self._fs.size(f"{place}/{file.name}")
                if size != file.size_bytes:
                    return f"size: {file.name} has {size} bytes, not {file.size_bytes}"
        except IncompatibleCheckpoint as error:
            return f"{error.reason}: {error}"
        except FileNotFoundError as error:
            return f"missing_file: {error.filename or error} is missing"
        except OSError as error:
            return f"{_UNREACHABLE}: {error}"
        return ""

    def discard(self, release_id: str) -> None:
        """Removes a release that was never announced, and what a killed writer left of it."""
        _require_safe(release_id)
        place = f"{self._root}/{release_id}"
        remains = self._fs.glob(f"{self._root}/.{release_id}.*.tmp") if self._is_local else []
        for path in (place, *remains):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def uri(self, release_id: str) -> str:
        """Where a release is, for people."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{release_id}"))

    def load(self, release_id: str) -> "ReleaseBundle":
        """A verified release; raises IncompatibleCheckpoint, or OSError if the store cannot be reached."""
        from models.artifacts.release import load_release

        _require_safe(release_id)
        directory = Path(self._root) / release_id if self._is_local else self._fetched(release_id)
        try:
            return load_release(directory)
        except IncompatibleCheckpoint:
            if not self._is_local:
                # A bad copy must not outlive a repaired original.
                shutil.rmtree(directory, ignore_errors=True)
            raise

    def _fetched(self, release_id: str) -> Path:
        copy = self._cache / release_id
        if copy.is_dir():
            return copy
        self._cache.mkdir(parents=True, exist_ok=True)
        source = f"{self._root}/{release_id}"
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".fetch-") as folder:
            temporary = Path(folder) / release_id
            temporary.mkdir()
            try:
                self._fs.get_file(f"{source}/{MANIFEST_NAME}", str(temporary / MANIFEST_NAME))
                for file in read_manifest(temporary).files:
                    self._fs.get_file(f"{source}/{file.name}", str(temporary / file.name))
            except FileNotFoundError as error:
                raise IncompatibleCheckpoint("missing_file", str(error)) from error
            try:
                temporary.rename(copy)
            except OSError:
                # Another service of this machine fetched it meanwhile.
                if not copy.is_dir():
                    raise
        return copy


class ReleasePublisher:
    """Saves releases and says which is live. Blocking: for the learner's thread and the command line."""

    def __init__(self, settings: Settings) -> None:
        self._bootstrap = settings.broker.bootstrap_servers
        self._store = release_store(settings)

    def publish(self, bundle: "ReleaseBundle", state: ReleaseState.ValueType, reason: str = "") -> Release:
        """Writes a release to the store, then announces it in `state`; returns its record."""
        self._store.save(bundle)
        return self.announce_stored(bundle.meta.release_id, state, reason)

    def announce_stored(self, release_id: str, state: ReleaseState.ValueType, reason: str = "") -> Release:
        """Announces what is in the store, whether the topic knows it or not; returns its record.

        Raises IncompatibleCheckpoint, OSError where it cannot be read, BrokerUnavailable.
        """
        manifest = self._store.manifest(release_id)
        meta = release_meta(manifest)
        release = Release(
            release_id=meta.release_id,
            parent_release_id=meta.parent_release_id or "",
            codebook_version=meta.codebook_version,
            uri=self._store.uri(meta.release_id),
            files=[
                ReleaseFile(name=file.name, sha256=file.sha256, size_bytes=file.size_bytes)
                for file in manifest.files
            ],
            config_hash=meta.config_hash,
            created_time_ms=meta.created_time_ms,
            offsets=offset_messages(meta.offsets),
            metrics=dict(meta.metrics),
        )
        return self._announce(release, state, reason)

    def announce(self, release_id: str, state: ReleaseState.ValueType, reason: str = "") -> Release:
        """Puts a known release into another state; raises NotFound for an unknown one."""
        for release in self.list():
            if release.release_id == release_id:
                return self._announce(release, state, reason)
        raise NotFound(f"there is no release {release_id}")

    def list(self) -> list[Release]:
        """The newest record of every release, in the order of those records: the last LIVE one is live.

        Raises BrokerUnavailable.
        """
        newest: dict[str, Release] = {}
        for record in read_to_end(self._bootstrap, RELEASES):
            newest.pop(record.message.release_id, None)
            newest[record.message.release_id] = record.message
        return [*newest.values()]

    def _announce(self, release: Release, state: ReleaseState.ValueType, reason: str) -> Release:
        """Writes the new state; a release that goes live retires the one before it, in this order."""
        replaced = [r for r in self.list() if r.state == LIVE] if state == LIVE else []
        announced = Release()
        announced.CopyFrom(release)
        announced.state, announced.reason = state, reason
        with Producer(self._bootstrap) as producer:
            producer.send(RELEASES, announced.release_id, announced)
            for old in replaced:
                if old.release_id != announced.release_id:
                    old.state, old.reason = _RETIRED, f"{announced.release_id} went live"
                    producer.send(RELEASES, old.release_id, old)
            producer.flush()
        return announced


class ReleaseWatcher:
    """Follows the topic and hands each release that goes live, loaded and verified, to `on_live`.

    `on_live` raises to refuse a release; the one before then stays live. One whose files are missing or not
    whole is tried again with growing pauses: they may be on their way. `service` labels the metrics.
    """

    def __init__(
        self,
        settings: Settings,
        on_live: "Callable[[Release, ReleaseBundle], Awaitable[None]]",
        *,
        service: str,
    ) -> None:
        self._bootstrap = settings.broker.bootstrap_servers
        self._store = release_store(settings)
        self._on_live = on_live
        self._service = service
        self._records: dict[str, Release] = {}
        self._refusals: dict[str, str] = {}
        self._wanted: Release | None = None
        self._wake = asyncio.Event()
        self.live: Release | None = None

    @property
    def wanted_release_id(self) -> str:
        """The release that should be live, empty before the first is announced."""
        return "" if self._wanted is None else self._wanted.release_id

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(self._bootstrap, RELEASES, self._put))
            tasks.create_task(self._load_wanted())

    async def _put(self, records: list[Record]) -> None:
        for record in records:
            release: Release = record.message
            self._records.pop(release.release_id, None)
            self._records[release.release_id] = release
        live = [r for r in self._records.values() if r.state == LIVE]
        if live:
            self._wanted = live[-1]
            self._wake.set()

    async def _load_wanted(self) -> None:
        pause_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
            if self._wake.is_set():
                self._wake.clear()
                pause_s = None
            if await self._try_wanted() in _MENDABLE:
                pause_s = min(2 * pause_s, _MAX_RETRY_S) if pause_s else _FIRST_RETRY_S
            else:
                pause_s = None

    async def _try_wanted(self) -> str | None:
        """Takes up the release that should be live; returns why that was refused, or None.

        With nothing live yet, an ancestor is better than none.
        """
        release, tried, refusal = self._wanted, set[str](), None
        while release is not None and not self._is_live(release) and release.release_id not in tried:
            tried.add(release.release_id)
            reason = await self._take_up(release)
            refusal = refusal or reason
            if reason is None or reason == _UNREACHABLE or self.live is not None:
                break
            release = self._records.get(release.parent_release_id)
        return refusal

    def _is_live(self, release: Release) -> bool:
        return self.live is not None and self.live.release_id == release.release_id

    async def _take_up(self, release: Release) -> str | None:
        """Loads a release and hands it over; returns why it was refused, or None."""
        started = time.perf_counter()
        try:
            bundle = await asyncio.to_thread(self._store.load, release.release_id)
            if bundle.meta.release_id != release.release_id:
                raise IncompatibleCheckpoint("format", f"the files are of release {bundle.meta.release_id}")
            await self._on_live(release, bundle)
        except IncompatibleCheckpoint as error:
            return self._refuse(release, error.reason, error)
        except OSError as error:
            return self._refuse(release, _UNREACHABLE, error)
        except Exception as error:
            # Whatever is wrong with a release, the live one goes on.
            return self._refuse(release, "error", error)
        finally:
            # what loading took, and the release before
            await asyncio.to_thread(give_back)
        RELEASE_LOAD_SECONDS.observe(time.perf_counter() - started)
        RELEASE_SWAPS.labels("swapped", "").inc()
        if self.live is not None:
            RELEASE_INFO.remove(self._service, self.live.release_id, self.live.codebook_version)
        RELEASE_INFO.labels(self._service, release.release_id, release.codebook_version).set(1)
        RELEASE_CREATED.labels(self._service).set(release.created_time_ms / 1e3)
        self.live = release
        self._refusals.pop(release.release_id, None)
        log.info(
            "release live",
            release_id=release.release_id,
            latency_ms=round((time.perf_counter() - started) * 1e3),
        )
        return None

    def _refuse(self, release: Release, reason: str, error: Exception) -> str:
        """Counts and logs a refusal; one that repeats itself is counted and logged once."""
        if self._refusals.get(release.release_id) == reason:
            return reason
        self._refusals[release.release_id] = reason
        RELEASE_SWAPS.labels("refused", reason).inc()
        live = "" if self.live is None else self.live.release_id
        log.error("release refused", release_id=release.release_id, reason=reason, live=live, exc_info=error)
        return reason


def release_store(settings: Settings) -> ReleaseStore:
    """The release store of these settings."""
    return ReleaseStore(settings.store.releases_url, settings.store.root / "release-cache")


def _require_safe(release_id: str) -> None:
    if not _SAFE_ID.fullmatch(release_id):
        raise IncompatibleCheckpoint("unsafe_name", f"{release_id!r} is no name of a release")
