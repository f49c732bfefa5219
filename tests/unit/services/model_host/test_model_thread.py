"""The model's thread: in order, one at a time, and never for nobody."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest

from services.errors import DeadlineExpired
from services.model_host.model_thread import ModelThread


class Call:
    """The part of a servicer's context that is asked for."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s


def call(left_s: float | None) -> "grpc.aio.ServicerContext[Any, Any]":
    return cast("grpc.aio.ServicerContext[Any, Any]", Call(left_s))


@pytest.fixture
async def thread() -> AsyncIterator[ModelThread]:
    thread = ModelThread(1)
    yield thread
    thread.close()


async def test_expired_and_cancelled_requests_never_run(thread: ModelThread) -> None:
    gate, ran = threading.Event(), []
    busy = asyncio.create_task(thread.run(gate.wait))
    await asyncio.sleep(0)
    expired = asyncio.create_task(thread.answer(call(0.0), lambda: ran.append("expired")))
    cancelled = asyncio.create_task(thread.answer(call(9.0), lambda: ran.append("cancelled")))
    good = asyncio.create_task(thread.answer(call(None), lambda: ran.append("good")))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(DeadlineExpired):
        await expired
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.gather(busy, good)
    assert ran == ["good"]


async def test_errors_come_back(thread: ModelThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)


async def test_work_that_finds_the_model_idle_is_done_where_it_stands(thread: ModelThread) -> None:
    assert thread.try_here(threading.get_ident) == threading.get_ident()
    gate = threading.Event()
    busy = asyncio.create_task(thread.run(gate.wait))
    await asyncio.sleep(0.01)
    assert thread.try_here(threading.get_ident) is None
    gate.set()
    await busy
    with pytest.raises(ZeroDivisionError):
        thread.try_here(lambda: 1 // 0)
    assert thread.try_here(lambda: 3) == 3  # the lock was let go
    thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        thread.try_here(lambda: 3)
