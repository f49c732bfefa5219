"""Requests that meet while the model's thread is busy are answered together.

Nobody waits for company: a turn takes what is there when it begins, of one kind at a time, but at most half
of all who ask: the event loop hands out the answers to one half while the model works on the other. A request
that is alone is answered where it stands. A request's answer, its deadline and its failure stay its own.
Knows nothing of the requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from services.errors import DeadlineExpired, NotReady
from services.metrics import BATCH_SIZE, CANCELLED, QUEUE_WAIT_SECONDS
from services.model_host.model_thread import ModelThread

Request = TypeVar("Request")
Response = TypeVar("Response")

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Request, Response]):
    """A request in the queue; times are those of `time.monotonic`."""

    request: Request
    kind: Hashable
    submitted_s: float
    deadline_s: float
    answer: asyncio.Future[Response]


@dataclass(slots=True)
class _Turn(Generic[Request, Response]):
    """What one turn of the model's thread took out of the queue, and what came of it."""

    batch: list[_Waiting[Request, Response]] = field(default_factory=list)
    expired: list[_Waiting[Request, Response]] = field(default_factory=list)
    results: list[Response | BaseException] = field(default_factory=list)


class MicroBatcher(Generic[Request, Response]):
    """`await answer(request, left_s)` on the event loop; `answer_many` runs while nobody else uses the model.

    A batch holds at most `max_batch` requests, all of which `kind_of` gives the same value; 1 turns
    batching off. `answer_many` returns one answer for each request, in order; when it raises for several,
    each is tried alone, so that none fails through another.
    """

    def __init__(
        self,
        thread: ModelThread,
        answer_many: Callable[[Sequence[Request]], Sequence[Response]],
        *,
        kind_of: Callable[[Request], Hashable],
        max_batch: int,
    ) -> None:
        self._thread = thread
        self._answer_many = answer_many
        self._kind_of = kind_of
        self._max_batch = max_batch
        self._queue: deque[_Waiting[Request, Response]] = deque()
        self._num_asking = 0
        self._is_called = False  # a turn comes, or one is at work that will look at the queue once more

    async def answer(self, request: Request, left_s: float) -> Response:
        """The request's answer; raises what `answer_many` raised for it, DeadlineExpired, NotReady.

        Cancelled, or not begun within `left_s` seconds, it is never worked on.
        """
        loop = asyncio.get_running_loop()
        now_s = time.monotonic()
        waiting: _Waiting[Request, Response] = _Waiting(
            request, self._kind_of(request), now_s, now_s + left_s, loop.create_future()
        )
        self._queue.append(waiting)
        self._num_asking += 1
        try:
            if not self._is_called:
                self._is_called = True
                loop.call_soon(self._call, loop)
            return await waiting.answer
        finally:
            self._num_asking -= 1

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the event loop: a turn of the model for what waits; here, for one that is alone.

        Nothing else is done here meanwhile, so others who ask or are just being answered would have to wait.
        """
        try:
            turn = self._thread.try_here(self._take_turn) if self._num_asking == 1 else None
        except RuntimeError:  # the thread was closed
            return self._give_up()
        if turn is None:
            return self._submit(loop)
        self._is_called = False
        self._deliver(turn)

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Callable from any thread."""

        def given_up(turns: "Future[None]") -> None:
            if turns.cancelled():
                loop.call_soon_threadsafe(self._give_up)

        try:
            self._thread.submit(lambda: self._take_turns(loop)).add_done_callback(given_up)
        except RuntimeError:  # the thread was closed
            loop.call_soon_threadsafe(self._give_up)

    def _take_turns(self, loop: asyncio.AbstractEventLoop) -> None:
        """One turn on the model's thread, and then another unless nobody waits: whatever else wants the model
        comes between. The event loop hands out the answers meanwhile."""
        turn = self._take_turn()
        self._is_called = False
        loop.call_soon_threadsafe(self._deliver, turn)
        if self._queue and not self._is_called:
            # the event loop may call at the same moment: then one of the two turns finds nobody
            self._is_called = True
            self._submit(loop)

    def _deliver(self, turn: _Turn[Request, Response]) -> None:
        for late in turn.expired:
            _settle(late, DeadlineExpired("the request waited longer than its deadline"))
        for waiting, result in zip(turn.batch, turn.results, strict=True):
            _settle(waiting, result)

    def _give_up(self) -> None:
        """The thread was closed: whoever still waits must not wait for ever."""
        log.warning("requests_are_given_up", num_requests=len(self._queue))
        self._is_called = False
        while self._queue:
            _settle(self._queue.popleft(), NotReady("the service stops"))

    def _take_turn(self) -> _Turn[Request, Response]:
        """Under the model's lock, which is needed to take out of the queue; the event loop only appends."""
        turn = self._take()
        if turn.batch:
            BATCH_SIZE.observe(len(turn.batch))
            turn.results = self._results([waiting.request for waiting in turn.batch])
        return turn

    def _take(self) -> _Turn[Request, Response]:
        turn: _Turn[Request, Response] = _Turn()
        others = []
        now_s = time.monotonic()
        most = max(1, min(self._max_batch, (self._num_asking + 1) // 2))
        while self._queue and len(turn.batch) < most:
            waiting = self._queue.popleft()
            if waiting.answer.done():
                CANCELLED.labels("queue").inc()
            elif now_s >= waiting.deadline_s:
                CANCELLED.labels("queue").inc()
                QUEUE_WAIT_SECONDS.observe(now_s - waiting.submitted_s)
                turn.expired.append(waiting)
            elif turn.batch and waiting.kind != turn.batch[0].kind:
                others.append(waiting)
            else:
                QUEUE_WAIT_SECONDS.observe(now_s - waiting.submitted_s)
                turn.batch.append(waiting)
        self._queue.extendleft(reversed(others))
        return turn

    def _results(self, requests: list[Request]) -> list[Response | BaseException]:
        try:
            return list(self._answer_many(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
        return [self._results([request])[0] for request in requests]


def _settle(waiting: _Waiting[Request, Response], result: Response | BaseException) -> None:
    if waiting.answer.done():  # cancelled meanwhile
        return
    if isinstance(result, BaseException):
        waiting.answer.set_exception(result)
    else:
        waiting.answer.set_result(result)
