"""Requests that wait together are answered together, and none pays for another."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from services.errors import DeadlineExpired, NotReady
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread


class Doubler:
    """Doubles numbers, of which 13 cannot be doubled; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def answer_many(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        if 13 in requests:
            raise ZeroDivisionError
        return [2 * request for request in requests]

    def batcher(self, thread: ModelThread, max_batch: int = 8) -> MicroBatcher[int, int]:
        return MicroBatcher(thread, self.answer_many, kind_of=lambda n: n < 100, max_batch=max_batch)


@pytest.fixture
async def thread() -> AsyncIterator[ModelThread]:
    thread = ModelThread(1)
    yield thread
    thread.close()


async def held(thread: ModelThread) -> tuple[threading.Event, "asyncio.Task[bool]"]:
    """Keeps the thread busy until the event is set."""
    gate = threading.Event()
    task = asyncio.create_task(thread.run(gate.wait))
    await asyncio.sleep(0)
    return gate, task


async def test_what_waits_is_taken_together_by_kind_and_in_order(thread: ModelThread) -> None:
    doubler = Doubler()
    batcher = doubler.batcher(thread, max_batch=3)
    gate, busy = await held(thread)
    answers = [asyncio.create_task(batcher.answer(n, 9.0)) for n in (1, 200, 2, 3, 300, 4)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(*answers) == [2, 400, 4, 6, 600, 8]
    assert doubler.batches == [[1, 2, 3], [200, 300], [4]]
    await busy
    assert await batcher.answer(5, 9.0) == 10


async def test_a_batch_of_one_is_no_batching(thread: ModelThread) -> None:
    doubler = Doubler()
    batcher = doubler.batcher(thread, max_batch=1)
    assert await asyncio.gather(*(batcher.answer(n, 9.0) for n in range(5))) == [0, 2, 4, 6, 8]
    assert doubler.batches == [[0], [1], [2], [3], [4]]


async def test_expired_and_cancelled_requests_are_never_worked_on(thread: ModelThread) -> None:
    doubler = Doubler()
    batcher = doubler.batcher(thread)
    gate, busy = await held(thread)
    expired = asyncio.create_task(batcher.answer(1, 0.0))
    cancelled = asyncio.create_task(batcher.answer(2, 9.0))
    good = asyncio.create_task(batcher.answer(3, 9.0))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(DeadlineExpired):
        await expired
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await good == 6
    assert doubler.batches == [[3]]
    await busy


async def test_a_failure_stays_its_own(thread: ModelThread) -> None:
    batcher = Doubler().batcher(thread)
    gate, busy = await held(thread)
    answers = [asyncio.create_task(batcher.answer(n, 9.0)) for n in (12, 13, 14)]
    await asyncio.sleep(0.01)
    gate.set()
    first, failed, last = await asyncio.gather(*answers, return_exceptions=True)
    assert (first, last) == (24, 28)
    assert isinstance(failed, ZeroDivisionError)
    await busy


async def test_nobody_waits_for_a_thread_that_was_closed() -> None:
    thread = ModelThread(1)
    batcher = Doubler().batcher(thread)
    thread.close()
    with pytest.raises(NotReady):
        await batcher.answer(1, 9.0)


async def test_whoever_waits_while_the_thread_is_closed_is_told(thread: ModelThread) -> None:
    batcher = Doubler().batcher(thread)
    gate, busy = await held(thread)
    answers = [asyncio.create_task(batcher.answer(n, 9.0)) for n in (1, 2)]
    await asyncio.sleep(0.01)
    threading.Timer(0.05, gate.set).start()
    thread.close()  # waits for what has begun
    assert [type(one) for one in await asyncio.gather(*answers, return_exceptions=True)] == [NotReady] * 2
    await busy


async def test_a_turn_takes_at_most_half_of_those_who_ask(thread: ModelThread) -> None:
    doubler = Doubler()
    batcher = doubler.batcher(thread)
    gate, busy = await held(thread)
    answers = [asyncio.create_task(batcher.answer(n, 9.0)) for n in range(4)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(*answers) == [0, 2, 4, 6]
    assert len(doubler.batches[0]) == 2
    await busy


async def test_an_asker_who_left_leaves_no_turn_behind(thread: ModelThread) -> None:
    doubler = Doubler()
    batcher = doubler.batcher(thread)
    gate, busy = await held(thread)
    gone = [asyncio.create_task(batcher.answer(n, 9.0)) for n in (1, 2, 3)]
    await asyncio.sleep(0.01)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    gate.set()
    await busy
    assert await batcher.answer(4, 9.0) == 8
    assert doubler.batches == [[4]]
