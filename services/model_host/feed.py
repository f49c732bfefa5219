"""The topics that a hosted model follows, once for all tenants: releases, semantic IDs and interactions."""

import asyncio
from collections.abc import Callable
from functools import partial

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1.release_pb2 import Release
from services.metrics import EVENTS_CONSUMED
from services.model_host.host import ModelHost
from services.model_host.model_thread import ModelThread
from services.releases.watcher import ReleaseWatcher
from services.settings import Settings
from streaming.clients.follow import follow
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS, SEMANTIC_IDS

# At most so many events delay a request.
_EVENTS_A_TURN = 8


class HostFeed:
    """Reads the topics for a host: releases are loaded beside its work, all else is done in its `thread`.

    `on_live` is called on the event loop after each swap.
    """

    def __init__(
        self, settings: Settings, host: ModelHost, thread: ModelThread, on_live: Callable[[], None]
    ) -> None:
        self._bootstrap = settings.broker.bootstrap_servers
        self._host = host
        self._thread = thread
        self._on_live = on_live
        self._first_offsets: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()
        self._is_caught_up = False
        self._watcher = ReleaseWatcher(
            settings, self._take_up, services=[tenant.name for tenant in host.tenants]
        )

    @property
    def wanted_release_id(self) -> str:
        """The release that should be live, empty before the first is announced."""
        return self._watcher.wanted_release_id

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watcher.run())
            tasks.create_task(
                follow(self._bootstrap, SEMANTIC_IDS, self._put_items, on_caught_up=self._note_caught_up)
            )
            tasks.create_task(self._follow_events())

    async def _take_up(self, release: Release, bundle: ReleaseBundle) -> None:
        loaded = await asyncio.to_thread(self._host.load, bundle)
        await self._thread.run(partial(self._host.swap, loaded))
        if not self._first_offsets.done():
            self._first_offsets.set_result(dict(bundle.meta.offsets))
        self._on_live()

    async def _put_items(self, records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(SEMANTIC_IDS).inc(len(records))
        sids = [record.message for record in records]
        await self._thread.run(partial(self._host.put_items, sids, is_live=self._is_caught_up))

    def _note_caught_up(self) -> None:
        self._is_caught_up = True

    async def _follow_events(self) -> None:
        if any(tenant.counts_events for tenant in self._host.tenants):
            # the first release brings what is counted up to its offsets; it goes on from there for ever
            offsets = await self._first_offsets
            await follow(self._bootstrap, INTERACTIONS, self._put_events, offsets=offsets)

    async def _put_events(self, records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(INTERACTIONS).inc(len(records))
        for first in range(0, len(records), _EVENTS_A_TURN):
            some = [record.message for record in records[first : first + _EVENTS_A_TURN]]
            await self._thread.run(partial(self._host.put_events, some))
