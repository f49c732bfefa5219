"""Brings appended records to disk before they are confirmed, those of many requests together."""

import asyncio
import logging
from collections.abc import Iterable

from streaming.broker.log import PartitionLog

logger = logging.getLogger(__name__)


class Flusher:
    """`await flusher.flush(logs)` returns when all that was appended to them before is on disk.

    While one flush is under way, all who ask wait for one next (group commit). Raises OSError if the disk
    does; then everything that was not confirmed is taken back.
    """

    def __init__(self) -> None:
        self._dirty: set[PartitionLog] = set()
        self._round: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def flush(self, logs: Iterable[PartitionLog]) -> None:
        """See the class."""
        self._dirty.update(logs)
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
        waiting = self._round
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        # one caller that goes away must not take the others' future with it
        await asyncio.shield(waiting)

    async def _run(self) -> None:
        while self._round is not None:
            waiting, self._round = self._round, None
            ends = {log: log.end_offset for log in self._dirty}
            self._dirty.clear()
            try:
                await asyncio.to_thread(_sync, list(ends))
            except OSError as error:
                self._give_up(error, waiting, ends)
                continue
            for log, end in ends.items():
                log.mark_stable(end)
            waiting.set_result(None)

    def _give_up(self, error: OSError, waiting: asyncio.Future[None], logs: Iterable[PartitionLog]) -> None:
        logger.error("not_on_disk error=%r", error)
        for log in {*logs, *self._dirty}:
            log.forget_unstable()
        self._dirty.clear()
        for one in (waiting, self._round):
            if one is not None:
                one.set_exception(error)
                one.exception()  # it counts as seen even where no caller is left
        self._round = None


def _sync(logs: list[PartitionLog]) -> None:
    for log in logs:
        log.sync()
