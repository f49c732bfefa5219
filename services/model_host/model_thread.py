"""The one thread of a process that runs its model and changes what the model reads.

One piece of work at a time means that no search ever meets a half-inserted item, and that requests queue in
order. Knows nothing of the work it runs.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc.aio
import torch

from services.errors import DeadlineExpired
from services.metrics import CANCELLED, QUEUE_WAIT_SECONDS
from services.rpc.clients import time_left

T = TypeVar("T")

# A compiled call that comes back while the event loop runs Python waits so long for the interpreter: with
# Python's own 5 ms as long as the call itself took.
_SWITCH_INTERVAL_S = 5e-4


class ModelThread:
    """Runs one piece of work at a time; `num_threads` are torch's inside it."""

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._executor = ThreadPoolExecutor(1, "model", torch.set_num_threads, (num_threads,))
        self._at_work = threading.Lock()
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, in its turn. Cancelled before its turn, it never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._alone, work)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """`run` for callers from any thread, who do not wait here. `close` cancels what has not begun.

        Raises RuntimeError after `close`.
        """
        return self._executor.submit(self._alone, work)

    def try_here(self, work: Callable[[], T]) -> T | None:
        """The result of `work`, done at once by the calling thread; None if the model is at work already.

        For work of a few milliseconds that is not None: a queue, two turns of the event loop and the waking
        of a thread would cost it as much again. Raises RuntimeError after `close`.
        """
        if self._is_closed:
            raise RuntimeError("the model's thread is closed")
        if not self._at_work.acquire(blocking=False):
            return None
        try:
            return work()
        finally:
            self._at_work.release()

    def _alone(self, work: Callable[[], T]) -> T:
        with self._at_work:
            return work()

    async def answer(self, context: "grpc.aio.ServicerContext[Any, Any]", work: Callable[[], T]) -> T:
        """`run` for a request: raises DeadlineExpired if its time is over when its turn comes."""
        submitted = time.monotonic()
        deadline = submitted + time_left(context)

        def in_turn() -> T:
            now = time.monotonic()
            QUEUE_WAIT_SECONDS.observe(now - submitted)
            if now >= deadline:
                CANCELLED.labels("queue").inc()
                raise DeadlineExpired("the request waited longer than its deadline")
            return work()

        return await self.run(in_turn)

    def close(self) -> None:
        """Drops what has not begun and waits for what has."""
        self._is_closed = True
        self._executor.shutdown(cancel_futures=True)
