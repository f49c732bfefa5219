"""Work that other threads hand to the learning thread, done between two batches, in order."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from services.errors import NotReady

T = TypeVar("T")


class CommandQueue:
    """A thread-safe queue of calls, each with the future of its result."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """The future result of `work`, called later by the owner's `run_waiting`."""
        future: Future[T] = Future()
        self._waiting.put((work, future))
        if self._closed:
            self._refuse_waiting()
        return future

    def run_waiting(self) -> None:
        """Does everything that waits; what `work` raises goes to its caller."""
        while not self._waiting.empty():
            work, future = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def close(self) -> None:
        """Refuses everything that waits and everything that comes, with NotReady."""
        self._closed = True
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while True:
            try:
                _, future = self._waiting.get_nowait()
            except queue.Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(NotReady("the learner is stopping"))
