"""What every broker promises who follows a topic's end: to be told when he has caught up, and what comes.

The brokers are shared by the whole run, so each test uses users, items and positions of its own.
"""

import asyncio
import uuid

import pytest

from protos.headrace.v1.items_pb2 import Item
from streaming.clients.producer import AsyncProducer
from streaming.clients.tail import tail
from streaming.messages import topics
from streaming.messages.topics import INTERACTIONS, ITEMS
from tests.contract.streams import end_offsets, make_event


async def test_a_tail_says_when_it_has_caught_up_and_goes_on(bootstrap: str) -> None:
    offsets = await asyncio.to_thread(end_offsets, bootstrap, ITEMS)
    names = [f"item-{uuid.uuid4().hex[:8]}" for _ in range(25)]
    seen: list[str] = []
    seen_when_caught_up: list[int] = []
    async with AsyncProducer(bootstrap) as producer, asyncio.timeout(30):
        await producer.send_many(ITEMS, [(name, Item(item_id=name)) for name in names[:20]])
        follow = tail(
            bootstrap, [ITEMS], offsets=offsets, on_caught_up=lambda: seen_when_caught_up.append(len(seen))
        )
        async for record in follow:
            seen.append(record.message.item_id)
            if len(seen) == 20:
                await producer.send_many(ITEMS, [(name, Item(item_id=name)) for name in names[20:]])
            if len(seen) == 25:
                break
        await follow.aclose()  # type: ignore[attr-defined]
    assert sorted(seen) == sorted(names)
    assert seen_when_caught_up == [20] or seen_when_caught_up == [25]


async def test_a_tail_from_now_on_reads_what_is_wanted_of_what_comes(bootstrap: str) -> None:
    mine = f"user-{uuid.uuid4().hex[:8]}"
    seen: asyncio.Queue[str] = asyncio.Queue()
    caught_up = asyncio.Event()
    async with AsyncProducer(bootstrap) as producer, asyncio.timeout(30):
        await producer.send(INTERACTIONS, mine, make_event(mine, "before"))

        async def follow() -> None:
            follower = tail(
                bootstrap,
                [INTERACTIONS],
                from_now=True,
                is_wanted=lambda key: key == mine,
                on_caught_up=caught_up.set,
            )
            async for record in follower:
                seen.put_nowait(record.message.item_id)

        following = asyncio.create_task(follow())
        await caught_up.wait()
        for user, item_id in (("another", "not this"), (mine, "this"), (mine, "and this")):
            await producer.send(INTERACTIONS, user, make_event(user, item_id))
        assert [await seen.get(), await seen.get()] == ["this", "and this"]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert seen.empty()


async def test_a_tail_of_an_empty_topic_has_caught_up_at_once(bootstrap: str) -> None:
    caught_up = asyncio.Event()

    async def follow() -> None:
        async for _ in tail(bootstrap, [topics.TRENDS], on_caught_up=caught_up.set):
            pass

    task = asyncio.create_task(follow())
    async with asyncio.timeout(20):
        await caught_up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
