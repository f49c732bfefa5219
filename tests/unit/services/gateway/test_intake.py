"""Events, items and logs on their way to the broker, with a producer that keeps what it is given."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

import pytest
from google.protobuf.message import Message

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import RecommendationLog
from services.errors import DeadlineExpired, InvalidRequest
from services.gateway.intake import Intake
from services.gateway.recommendation_log import RecommendationLogWriter
from services.metrics import RECOMMENDATION_LOGS_DROPPED
from streaming.clients.producer import AsyncProducer
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import Written
from streaming.messages.codec import MAX_VALUE_BYTES, encode


class KeepingProducer(AsyncProducer):
    """Keeps messages instead of sending them; fails or hangs on demand."""

    def __init__(self) -> None:
        super().__init__("nowhere:0")
        self.kept: list[tuple[str, str, Message]] = []
        self.is_down = False
        self.hangs = False

    async def send(self, topic: str, key: str, message: Message) -> tuple[str, int]:
        await self.send_many(topic, [(key, message)])
        return f"{topic}/3", len(self.kept) - 1

    async def send_many(self, topic: str, messages: Iterable[tuple[str, Message]]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_down:
            raise BrokerUnavailable("down")
        await asyncio.sleep(0)
        given = list(messages)
        if any(len(encode(message)) > MAX_VALUE_BYTES for _, message in given):
            raise MalformedEvent("too_large", topic)
        self.kept += [(topic, key, message) for key, message in given]


class KeepingHistory(FreshHistory):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Written] = []

    def wrote(self, written: Written) -> None:
        self.told.append(written)


def intake(producer: AsyncProducer, history: FreshHistory | None = None) -> Intake:
    return Intake(producer, history or KeepingHistory())


def event(user_id: str = "u", item_id: str = "i", **fields: object) -> Event:
    return Event(user_id=user_id, item_id=item_id, action=Action.ACTION_CLICK, **fields)  # type: ignore[arg-type]


async def stream(events: Sequence[Event], *, group: int = 1) -> AsyncIterator[Sequence[Event]]:
    for first in range(0, len(events), group):
        yield events[first : first + group]


async def test_track_fills_in_id_and_time() -> None:
    producer = KeepingProducer()
    history = KeepingHistory()
    event_id = await intake(producer, history).track(event(), 1.0)
    [(topic, key, written)] = producer.kept
    assert history.told == [Written(event=written, position="interactions/3", offset=0)]
    assert isinstance(written, Event)
    assert (topic, key, written.event_id) == ("interactions", "u", event_id)
    assert written.event_time_ms > 1_700_000_000_000


async def test_track_keeps_the_senders_id_and_time() -> None:
    producer = KeepingProducer()
    assert await intake(producer).track(event(event_id="e1", event_time_ms=1_600_000_000_000), 1.0) == "e1"
    assert producer.kept == [("interactions", "u", event(event_id="e1", event_time_ms=1_600_000_000_000))]


async def test_track_names_the_wrong_field() -> None:
    with pytest.raises(InvalidRequest) as error:
        await intake(KeepingProducer()).track(Event(user_id="u", item_id="i"), 1.0)
    assert [field for field, _ in error.value.violations] == ["event.action"]


async def test_track_gives_up_in_time() -> None:
    producer = KeepingProducer()
    producer.hangs = True
    with pytest.raises(DeadlineExpired):
        await intake(producer).track(event(), 0.01)


@pytest.mark.parametrize("group", [1, 7, 2_000])
async def test_a_stream_is_written_in_order_and_its_rejections_are_reported(group: int) -> None:
    producer = KeepingProducer()
    events = [event(event_id=f"e{n}", item_id="" if n % 10 == 3 else "i") for n in range(1_505)]
    answer = await intake(producer).track_many(stream(events, group=group))
    assert (answer.num_accepted, answer.num_rejected) == (1_354, 151)
    assert [rejected.index for rejected in answer.rejected] == [10 * n + 3 for n in range(100)]
    assert (answer.rejected[0].event_id, answer.rejected[0].field) == ("e3", "item_id")
    written = [message.event_id for _, _, message in producer.kept if isinstance(message, Event)]
    assert written == [each.event_id for each in events if each.item_id]


async def test_an_empty_stream_is_answered() -> None:
    answer = await intake(KeepingProducer()).track_many(stream([]))
    assert (answer.num_accepted, answer.num_rejected) == (0, 0)


async def test_a_stream_that_fails_fails_the_call() -> None:
    async def failing() -> AsyncIterator[Sequence[Event]]:
        yield [event()]
        raise InvalidRequest(("request", "is no event"))

    producer = KeepingProducer()
    with pytest.raises(InvalidRequest):
        await intake(producer).track_many(failing())
    assert len(producer.kept) == 1


async def test_a_stream_ends_when_the_broker_is_down_though_its_caller_sends_on() -> None:
    async def endless() -> AsyncIterator[Sequence[Event]]:
        while True:
            yield [event()]

    producer = KeepingProducer()
    producer.is_down = True
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(intake(producer).track_many(endless()), 5)


async def test_announced_items_get_their_time() -> None:
    producer = KeepingProducer()
    items = [Item(item_id="a"), Item(item_id="b", announced_time_ms=7)]
    await intake(producer).announce(items, 1.0)
    assert [(topic, key) for topic, key, _ in producer.kept] == [("items", "a"), ("items", "b")]
    assert items[0].announced_time_ms > 1_700_000_000_000
    assert items[1].announced_time_ms == 7


def dropped() -> float:
    return sum(
        sample.value for metric in RECOMMENDATION_LOGS_DROPPED.collect() for sample in metric.samples[:1]
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_log_never_blocks_and_counts_what_it_drops() -> None:
    producer = KeepingProducer()
    writer = RecommendationLogWriter(producer, max_queued=2, linger_s=0.0)
    before = dropped()
    for n in range(5):
        writer.put(RecommendationLog(request_id=f"r{n}"))
    assert dropped() - before == 3
    task = asyncio.create_task(writer.run())
    await settle()
    assert [(topic, key) for topic, key, _ in producer.kept] == [
        ("recommendations", "r0"),
        ("recommendations", "r1"),
    ]
    producer.is_down = True
    writer.put(RecommendationLog(request_id="r5"))
    await settle()
    assert dropped() - before == 4
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    producer.is_down = False
    writer.put(RecommendationLog(request_id="r6"))
    await writer.flush()
    assert producer.kept[-1][1] == "r6"


async def test_a_log_that_is_too_large_takes_no_other_with_it() -> None:
    producer = KeepingProducer()
    writer = RecommendationLogWriter(producer)
    before = dropped()
    writer.put(RecommendationLog(request_id="small"))
    writer.put(RecommendationLog(request_id="huge", user_id="u" * MAX_VALUE_BYTES))
    writer.put(RecommendationLog(request_id="small-after"))
    await writer.flush()
    assert [key for _, key, _ in producer.kept] == ["small", "small-after"]
    assert dropped() - before == 1
