"""Requests that meet while the model's thread is busy are answered together.

Nobody waits for company: a turn takes what is there when it begins, of one kind at a time. A request that is
alone while the model is idle is answered where it stands. A request's answer, its deadline and its failure
stay its own. Knows nothing of the requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
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
        self._work: asyncio.Task[None] | None = None

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
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._empty_queue())
        return await waiting.answer

    async def _empty_queue(self) -> None:
        try:
            while self._queue:
                is_alone = len(self._queue) == 1
                here = self._thread.try_here(self._take_turn) if is_alone else None
                turn = await self._thread.run(self._take_turn) if here is None else here
                for late in turn.expired:
                    _settle(late, DeadlineExpired("the request waited longer than its deadline"))
                for waiting, result in zip(turn.batch, turn.results, strict=True):
                    _settle(waiting, result)
        except RuntimeError as error:  # the thread was closed
            log.warning("requests_are_given_up", num_requests=len(self._queue), error=str(error))
        finally:
            # Whoever still waits must not wait for ever.
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
        while self._queue and len(turn.batch) < self._max_batch:
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
