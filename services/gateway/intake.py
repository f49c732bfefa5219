"""Events and items on their way in: filled up, checked, written, and confirmed by the broker.

Owns what the gateway adds to them (ids and times a caller left out). Knows nothing of what reads them.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import RejectedEvent, TrackStreamResponse
from services.errors import DeadlineExpired, InvalidRequest
from streaming.clients.producer import AsyncProducer
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import Written
from streaming.messages.events import Violations, new_event_id, validate_event
from streaming.messages.topics import INTERACTIONS, ITEMS

MAX_REPORTED_REJECTIONS = 100
# One write to the broker takes groups until it has this many events; the next ones are read meanwhile.
_MAX_BATCH = 2_000
_MAX_GROUPS = 1_000


@dataclass(frozen=True)
class _End:
    """The stream of a caller is over, or failed."""

    error: Exception | None


class Intake:
    """Writes to `interactions` and `items`; every method returns when the broker has it all.

    `history` is told of events that come one by one: their users are likely to ask next.
    """

    def __init__(self, producer: AsyncProducer, history: FreshHistory) -> None:
        self._producer = producer
        self._history = history

    async def track(self, event: Event, timeout_s: float) -> str:
        """Writes one event and returns its id; raises InvalidRequest, BrokerUnavailable, DeadlineExpired."""
        fill_event(event)
        violations = check_event(event)
        if violations:
            raise InvalidRequest(*((f"event.{field}", problem) for field, problem in violations))
        async with _in_time(timeout_s):
            position, offset = await self._producer.send(INTERACTIONS, event.user_id, event)
        self._history.wrote(Written(event=event, position=position, offset=offset))
        return event.event_id

    async def announce(self, items: Iterable[Item], timeout_s: float) -> None:
        """Writes valid items; raises BrokerUnavailable, DeadlineExpired."""
        now_ms = _now_ms()
        for item in items:
            item.announced_time_ms = item.announced_time_ms or now_ms
        async with _in_time(timeout_s):
            await self._producer.send_many(ITEMS, [(item.item_id, item) for item in items])

    async def track_many(self, groups: AsyncIterator[Sequence[Event]]) -> TrackStreamResponse:
        """Writes the valid events of all groups in order while reading on; raises BrokerUnavailable.

        After BrokerUnavailable some may have been written: sent again with the same ids they are
        learned once.
        """
        acceptance = _Acceptance()
        queue: asyncio.Queue[Sequence[Event] | _End] = asyncio.Queue(maxsize=_MAX_GROUPS)
        reader = asyncio.create_task(_read(groups, queue))
        try:
            while True:
                batch, end = await _next_batch(queue)
                accepted = acceptance.valid(batch)
                await self._producer.send_many(INTERACTIONS, accepted)
                acceptance.answer.num_accepted += len(accepted)
                if end is not None and end.error is not None:
                    raise end.error
                if end is not None:
                    return acceptance.answer
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


@contextlib.asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise DeadlineExpired("the broker did not confirm in time") from error


def fill_event(event: Event) -> None:
    """Gives an event the id and time (now) that its sender left out."""
    event.event_id = event.event_id or new_event_id()
    event.event_time_ms = event.event_time_ms or _now_ms()


def check_event(event: Event) -> Violations:
    """What is wrong with an event. A time in the future, from a fast clock, becomes now, as for readers."""
    now_ms = _now_ms()
    violations = validate_event(event, now_ms=now_ms)
    event.event_time_ms = min(event.event_time_ms, now_ms)
    return violations


class _Acceptance:
    """Which events of one stream are valid, and what its caller is told of the others."""

    def __init__(self) -> None:
        self.answer = TrackStreamResponse()
        self._index = 0

    def valid(self, events: Iterable[Event]) -> list[tuple[str, Event]]:
        """The valid ones of the next events, each with its key."""
        return [(event.user_id, event) for event in events if self._check(event)]

    def _check(self, event: Event) -> bool:
        index, self._index = self._index, self._index + 1
        fill_event(event)
        violations = check_event(event)
        if not violations:
            return True
        self.answer.num_rejected += 1
        if len(self.answer.rejected) < MAX_REPORTED_REJECTIONS:
            field, problem = violations[0]
            self.answer.rejected.append(
                RejectedEvent(index=index, event_id=event.event_id, field=field, reason=problem)
            )
        return False


async def _read(groups: AsyncIterator[Sequence[Event]], queue: asyncio.Queue[Sequence[Event] | _End]) -> None:
    """Moves a caller's events into the queue, and at last how the stream ended."""
    error: Exception | None = None
    try:
        async for group in groups:
            await queue.put(group)
    except Exception as failure:  # raised again by the task that writes
        error = failure
    await queue.put(_End(error))


async def _next_batch(queue: asyncio.Queue[Sequence[Event] | _End]) -> tuple[list[Event], _End | None]:
    """Waits for one group, then takes what is there already."""
    batch: list[Event] = []
    entry = await queue.get()
    while True:
        if isinstance(entry, _End):
            return batch, entry
        batch += entry
        if len(batch) >= _MAX_BATCH or queue.empty():
            return batch, None
        entry = queue.get_nowait()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
