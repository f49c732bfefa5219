"""Follows the topic `releases` and hands over what goes live, loaded and verified.

What to do with a release is the business of the service that watches.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from models.errors import IncompatibleCheckpoint
from protos.headrace.v1.release_pb2 import Release
from services.memory import give_back
from services.metrics import RELEASE_CREATED, RELEASE_INFO, RELEASE_LOAD_SECONDS, RELEASE_SWAPS
from services.releases.fold import Releases
from services.releases.store import UNREACHABLE, release_store
from services.settings import Settings
from streaming.clients.follow import follow
from streaming.messages.records import Record
from streaming.messages.topics import RELEASES

if TYPE_CHECKING:
    from models.artifacts.release import ReleaseBundle

_FIRST_RETRY_S = 2.0
_MAX_RETRY_S = 30.0
# Reasons that pass once a file appears or is copied whole; a whole release that does not fit stays refused.
_MENDABLE = frozenset({UNREACHABLE, "missing_file", "size", "checksum"})

log = structlog.get_logger()


class ReleaseWatcher:
    """Follows the topic and hands each release that goes live, loaded and verified, to `on_live`.

    `on_live` raises to refuse a release; the one before then stays live. One whose files are missing or not
    whole is tried again with growing pauses: they may be on their way. `services` label the metrics.
    """

    def __init__(
        self,
        settings: Settings,
        on_live: "Callable[[Release, ReleaseBundle], Awaitable[None]]",
        *,
        services: Sequence[str],
    ) -> None:
        self._bootstrap = settings.broker.bootstrap_servers
        self._store = release_store(settings)
        self._on_live = on_live
        self._services = services
        self._known = Releases()
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
            self._known.put(record.message)
        live = self._known.live
        if live is not None:
            self._wanted = live
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
            if reason is None or reason == UNREACHABLE or self.live is not None:
                break
            release = self._known.get(release.parent_release_id)
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
            return self._refuse(release, UNREACHABLE, error)
        except Exception as error:
            # Whatever is wrong with a release, the live one goes on.
            return self._refuse(release, "error", error)
        finally:
            # the memory that loading took, and the release before
            await asyncio.to_thread(give_back)
        RELEASE_LOAD_SECONDS.observe(time.perf_counter() - started)
        RELEASE_SWAPS.labels("swapped", "").inc()
        for service in self._services:
            if self.live is not None:
                RELEASE_INFO.remove(service, self.live.release_id, self.live.codebook_version)
            RELEASE_INFO.labels(service, release.release_id, release.codebook_version).set(1)
            RELEASE_CREATED.labels(service).set(release.created_time_ms / 1e3)
        self.live = release
        self._refusals.pop(release.release_id, None)
        log.info(
            "release_live",
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
        log.error(
            "release_refused",
            release_id=release.release_id,
            live_release_id="" if self.live is None else self.live.release_id,
            reason=reason,
            exc_info=error,
        )
        return reason
