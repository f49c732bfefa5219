"""How events are gathered into batches, with faust's stream in the shape that the worker needs of it."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from streaming.trends import worker


class QueuedStream:
    """Events of a queue, as faust's `Stream.events` yields those of its channel."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = SimpleNamespace(queue=self.queue)

    async def events(self) -> AsyncIterator[Any]:
        while True:
            yield await self.queue.get()


async def test_batches_are_full_or_what_came_within_the_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BATCH_EVENTS", 4)
    monkeypatch.setattr(worker, "_LINGER_S", 0.05)
    stream = QueuedStream()
    for number in range(9):
        stream.queue.put_nowait(number)
    batches = worker._batches(stream)
    assert [await anext(batches) for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    upcoming = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0.1)
    assert not upcoming.done()
    stream.queue.put_nowait(9)
    await asyncio.sleep(0)
    stream.queue.put_nowait(10)  # within the linger of the one before
    assert await upcoming == [9, 10]
    await batches.aclose()
