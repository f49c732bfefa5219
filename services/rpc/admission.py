"""Who may work, and who may stay: calls, streams and watches have limits of their own.

A call takes a working place while it is answered. A stream takes one while it answers, and none while it
waits: idle streams keep nobody from being served, however many there are.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

from services import metrics
from services.errors import Overloaded
from services.settings import ServerSettings


class Admission:
    """The places of one server; for one event loop."""

    def __init__(self, service: str, settings: ServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._num_working = 0
        self._num_open = {"streams": 0, "watches": 0}
        self._freed = asyncio.Event()
        self._inflight = metrics.INFLIGHT.labels(service)
        self._open = {kind: metrics.OPEN_STREAMS.labels(service, kind) for kind in self._num_open}
        self._inflight.set(0)

    @contextmanager
    def call(self) -> Iterator[None]:
        """A working place; raises Overloaded if all are taken."""
        if self._num_working >= self._settings.max_inflight:
            metrics.SHED.labels("inflight").inc()
            raise Overloaded(f"{self._service} works on {self._settings.max_inflight} requests already")
        with self._working():
            yield

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A working place for one answer of a stream, which waits until one is free."""
        while self._num_working >= self._settings.max_inflight:
            self._freed.clear()
            await self._freed.wait()
        with self._working():
            yield

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The right to stay open; raises Overloaded if too many streams are."""
        with self._staying("streams", self._settings.max_streams):
            yield

    @contextmanager
    def watch(self) -> Iterator[None]:
        """The same for watches of the service's health, and for reflection."""
        with self._staying("watches", self._settings.max_watches):
            yield

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._num_working += 1
        self._inflight.inc()
        try:
            yield
        finally:
            self._num_working -= 1
            self._inflight.dec()
            self._freed.set()

    @contextmanager
    def _staying(self, kind: str, most: int) -> Iterator[None]:
        if self._num_open[kind] >= most:
            metrics.SHED.labels(kind).inc()
            raise Overloaded(f"{self._service} keeps {most} {kind} open already")
        self._num_open[kind] += 1
        self._open[kind].inc()
        try:
            yield
        finally:
            self._num_open[kind] -= 1
            self._open[kind].dec()


admission_var: ContextVar[Admission | None] = ContextVar("admission", default=None)


@asynccontextmanager
async def working_turn() -> AsyncIterator[None]:
    """A working place of the server whose stream this is; without a server (a test, say), nothing."""
    admission = admission_var.get()
    if admission is None:
        yield
        return
    async with admission.turn():
        yield
