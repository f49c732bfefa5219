"""faust's consumer, without the records that it loses at its start and in a rebalance.

Until a rebalance has ended (tables recovered, partitions sought to what is committed, flow resumed), faust
throws away what it fetches of a stream's partitions: they are paused under a fetch that is under way, and
queues are emptied when flow resumes. It then seeks to the committed offset, but not where nothing is
committed yet, and not for what is fetched after the seek: those events were never handed over.
"""

import logging
from collections.abc import Mapping
from typing import Any

from faust.transport.drivers import aiokafka as driver

logger = logging.getLogger(__name__)

_PAUSE_S = 0.05
_RETRY_S = 0.5
_LOOK_AROUND_S = 1.0


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer, whose background task looks around five times a second unless told otherwise."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # faust has no setting for `consumer_timeout_ms`
        consumer._consumer_timeout = _LOOK_AROUND_S  # noqa: SLF001
        return consumer


class Consumer(driver.Consumer):
    """Fetches a stream's partitions between rebalances alone, each time from what is committed, or else from
    the first record on."""

    _must_seek = True

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 (faust's)
        """Records by partition; waits `timeout` seconds at most."""
        if self.app.rebalancing:
            self._must_seek = True
            changelogs = {place for place in active_partitions if self._is_changelog_tp(place)}
            if changelogs:
                return await super()._getmany(changelogs, timeout)
            await self.sleep(_PAUSE_S)
            return {}
        if self._must_seek:
            try:
                await self.perform_seek()
            except Exception as error:  # a rebalance that begins meanwhile shows as errors of many types
                logger.warning("not_sought", extra={"error": repr(error)})
                await self.sleep(_RETRY_S)
                return {}
            self._must_seek = False
        generation = self.app.consumer_generation_id
        # a copy: faust changes the set that it hands over, and takes an empty one for every partition
        records = await super()._getmany(set(active_partitions), timeout)
        if self.app.rebalancing or generation != self.app.consumer_generation_id:
            self._must_seek = True
            return {}
        return records

    async def seek_to_committed(self) -> Mapping[Any, Any]:
        """Committed offsets by partition. aiokafka leaves a partition without one, or with 0, where it is."""
        committed = await super().seek_to_committed()
        fresh = [
            place for place, offset in committed.items() if not offset and not self._is_changelog_tp(place)
        ]
        if fresh:
            await self.seek_wait(await self.earliest_offsets(*fresh))
        return committed


class Transport(driver.Transport):
    """For `app.transport`."""

    Consumer = Consumer
