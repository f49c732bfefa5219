"""A running stack that grows: what new items and new users take, by process.

Items are announced by `UpsertItems` with a vector of their own, users act by `TrackStream`, as anybody's
would. Waits until every process has taken them in.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import numpy as np
from memory_processes import Memory
from serving_measures import Bench
from serving_world import new_event

from protos.headrace.v1 import recommend_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import TrackStreamRequest, UpsertItemsRequest

EVENTS_PER_USER = 8
_WIDTH = 384  # of the vectors of every world
_ITEMS_A_CALL, _EVENTS_A_MESSAGE = 100, 100
_POLL_S, _PATIENCE_S = 1.0, 300.0
# the learner gives freed pages back every five seconds
_SETTLE_S = 12.0


async def growth_of_items(bench: Bench, num_items: int) -> dict[str, float]:
    """Bytes for each of so many new items, by process."""
    before = await _own_mb(bench)
    stub = recommend_pb2_grpc.RecommenderServiceStub(bench.gateway)
    vector_NE = np.random.default_rng(1).standard_normal((num_items, _WIDTH), dtype=np.float32)
    names = [f"grown-{n}" for n in range(num_items)]
    for first in range(0, num_items, _ITEMS_A_CALL):
        items = []
        for n in range(first, min(first + _ITEMS_A_CALL, num_items)):
            item = Item(item_id=names[n], title=f"grown item {n}", announced_time_ms=_now_ms())
            item.embeddings.add(modality="text", values=vector_NE[n].tolist())
            items.append(item)
        await stub.UpsertItems(UpsertItemsRequest(items=items), timeout=30.0)
    await _until_coded(bench, names)
    await bench.recommend(bench.bodies[0])  # rows are encoded when they are first needed
    return await _grown(bench, before, num_items)


async def growth_of_users(bench: Bench, num_users: int) -> dict[str, float]:
    """Bytes for each of so many new users with `EVENTS_PER_USER` events, by process."""
    before = await _own_mb(bench)

    async def messages() -> AsyncIterator[TrackStreamRequest]:
        events = list(_events(bench, num_users))
        for first in range(0, len(events), _EVENTS_A_MESSAGE):
            yield TrackStreamRequest(events=events[first : first + _EVENTS_A_MESSAGE])

    stub = recommend_pb2_grpc.RecommenderServiceStub(bench.gateway)
    await stub.TrackStream(messages(), timeout=_PATIENCE_S)
    await bench.catch_up()
    return await _grown(bench, before, num_users)


def _events(bench: Bench, num_users: int) -> Iterator[Event]:
    chance = np.random.default_rng(2)
    for user in range(num_users):
        for item in chance.choice(bench.world.item_ids, EVENTS_PER_USER):
            yield new_event(f"grown-{user}", str(item), _now_ms())


async def _until_coded(bench: Bench, names: list[str]) -> None:
    async with (
        asyncio.timeout(_PATIENCE_S),
        grpc.aio.insecure_channel(bench.settings.endpoints.address("tokenizer")) as channel,
    ):
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        request = tokenizer_pb2.TokenizeRequest(item_ids=names[-1:])
        while True:
            if (await stub.Tokenize(request)).sids:
                return
            await asyncio.sleep(_POLL_S)


async def _grown(bench: Bench, before: dict[str, float], number: int) -> dict[str, float]:
    after = await _own_mb(bench)
    return {name: (mb - before[name]) * 1e6 / number for name, mb in after.items()}


async def _own_mb(bench: Bench) -> dict[str, float]:
    await asyncio.sleep(_SETTLE_S)
    return {name: Memory.of(pid).own for name, pid in bench.stack.pids.items()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
