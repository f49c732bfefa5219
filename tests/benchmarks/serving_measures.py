"""What `bench_serving.py` measures, one function a question, each on a running stack.

Owns the order and the length of the measurements and the rows that come of them; how load is made is in
`serving_load.py`, the world in `serving_world.py`.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
from serving_load import (
    Answers,
    Call,
    EventMaker,
    change_answer,
    closed_loop,
    cpu_seconds,
    one_by_one,
    open_loop,
    raw,
    recommend_bodies,
    track_steadily,
    track_stream,
)
from serving_world import World

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc
from services.settings import Settings
from services.stack.supervisor import Stack

Row = dict[str, Any]

K, BEAM = 10, 50
EVENTS_PER_S = 50.0
_REQUESTS_PER_S = 20.0
_SETTLE_S = 2.0
_CATCH_UP_S = 120.0
_STREAM_MESSAGE_EVENTS = 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured: seconds for each load, callers, users, calls after a pause, and events."""

    seconds: float = 15.0
    num_clients: Sequence[int] = (8, 32)
    num_callers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    caller_seconds: float = 6.0
    num_users: int = 500
    num_calls: int = 300
    num_cold_users: int = 300
    num_changes: int = 60
    num_stream_singles: int = 20_000
    num_stream_events: int = 200_000


QUICK = Plan(
    seconds=1.5,
    num_clients=(4,),
    num_callers=(1, 4),
    caller_seconds=0.7,
    num_users=40,
    num_calls=20,
    num_cold_users=20,
    num_changes=3,
    num_stream_singles=500,
    num_stream_events=2_000,
)


@dataclass(kw_only=True)
class Bench:
    """A running stack and what callers need to use it."""

    world: World
    stack: Stack
    plan: Plan
    gateway: grpc.aio.Channel
    learner: grpc.aio.Channel
    users: list[str] = field(init=False)
    cold_users: list[str] = field(init=False)

    def __post_init__(self) -> None:
        shuffled = self.world.user_ids
        random.Random(0).shuffle(shuffled)
        self.users = shuffled[: self.plan.num_users]
        self.cold_users = shuffled[self.plan.num_users :][: self.plan.num_cold_users]
        self.recommend: Call = raw(self.gateway, "RecommenderService/Recommend")
        self.track: Call = raw(self.gateway, "RecommenderService/Track")
        self.bodies = recommend_bodies(self.users, k=K, beam=BEAM)
        self.events = EventMaker(self.users, self.world.item_ids)

    @property
    def settings(self) -> Settings:
        """The stack's settings."""
        return self.stack.settings

    async def num_learned(self) -> int:
        """Events that the learner has learned, in all its life."""
        stub = learner_pb2_grpc.LearnerServiceStub(self.learner)
        status = await stub.Status(learner_pb2.StatusRequest(), timeout=30.0)
        return int(status.num_events_learned)

    async def catch_up(self) -> None:
        """Returns when the learner has read all that was tracked."""
        stub = learner_pb2_grpc.LearnerServiceStub(self.learner)
        async with asyncio.timeout(_CATCH_UP_S):
            while True:
                before = await self.num_learned()
                await asyncio.sleep(_SETTLE_S)
                status = await stub.Status(learner_pb2.StatusRequest(), timeout=30.0)
                if status.lag_records == 0 and status.num_events_learned == before:
                    return


@contextlib.asynccontextmanager
async def bench_on(stack: Stack, world: World, plan: Plan) -> AsyncIterator[Bench]:
    """Channels to a running stack, its users asked for once so that what comes is not their first time."""
    endpoints = stack.settings.endpoints
    async with (
        grpc.aio.insecure_channel(endpoints.address("gateway")) as gateway,
        grpc.aio.insecure_channel(endpoints.address("learner")) as learner,
    ):
        bench = Bench(world=world, stack=stack, plan=plan, gateway=gateway, learner=learner)
        await asyncio.sleep(_SETTLE_S)
        await one_by_one(bench.recommend, bench.bodies)
        yield bench


@contextlib.asynccontextmanager
async def learning(bench: Bench) -> AsyncIterator[None]:
    """Events of the same users at a steady rate while the block runs; then the learner catches up."""
    writing = asyncio.create_task(track_steadily(bench.track, bench.events, per_s=EVENTS_PER_S))
    try:
        await asyncio.sleep(_SETTLE_S)
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await bench.catch_up()


async def recommend_rows(bench: Bench, learner: str) -> list[Row]:
    """`Recommend` at one client, at 20 requests a second, and as fast as more clients can."""
    seconds = bench.plan.seconds
    rows = []
    loads: list[tuple[str, int]] = [("1 client", 1), ("20 requests/s", 0)]
    loads += [(f"{number} clients", number) for number in bench.plan.num_clients]
    for load, num_clients in loads:
        pids = bench.stack.pids
        cpu_before, learned_before = cpu_seconds(pids), await bench.num_learned()
        if num_clients:
            answers = await closed_loop(
                bench.recommend, bench.bodies, num_clients=num_clients, seconds=seconds
            )
        else:
            answers = await open_loop(bench.recommend, bench.bodies, per_s=_REQUESTS_PER_S, seconds=seconds)
        cpu = {name: used - cpu_before[name] for name, used in cpu_seconds(pids).items()}
        num_learned = await bench.num_learned() - learned_before
        rows.append(
            {
                "load": load,
                "learner": learner,
                "stages": answers.stages(),
                **answers.figures(),
                "cpu_ms_per_answer": {n: used * 1e3 / len(answers.seconds) for n, used in cpu.items()},
                "events_learned_per_s": num_learned / answers.wall_s,
            }
        )
    return rows


async def user_rows(bench: Bench) -> list[Row]:
    """The same users asked for the first time (their state is computed), and again (it is kept)."""
    bodies = recommend_bodies(bench.cold_users, k=K, beam=BEAM)
    rows = []
    for user in ("cold", "warm"):
        answers = await one_by_one(bench.recommend, bodies)
        rows.append({"user": user, "stages": answers.stages(), **answers.figures()})
    return rows


async def change_row(bench: Bench, learner: str) -> Row:
    """How long after an event its user's answer is another."""
    chance = random.Random(2)
    changes = []
    for user in chance.sample(bench.users, min(bench.plan.num_changes, len(bench.users))):
        changes.append(await change_answer(bench.recommend, bench.track, user, k=K, beam=BEAM))
        await asyncio.sleep(chance.uniform(0.0, 0.1))  # at no fixed phase of anybody's polling
    sent_ms = np.percentile([change.since_sent_s * 1e3 for change in changes], (50, 95))
    confirmed_ms = np.percentile([change.since_confirmed_s * 1e3 for change in changes], (50, 95))
    return {
        "learner": learner,
        "num_changes": len(changes),
        "since_sent_median_ms": sent_ms[0],
        "since_sent_p95_ms": sent_ms[1],
        "since_confirmed_median_ms": confirmed_ms[0],
        "since_confirmed_p95_ms": confirmed_ms[1],
    }


async def track_rows(bench: Bench) -> list[Row]:
    """Events a second into Kafka: one a call, at 1 and 64 callers; one and 100 a message of a stream."""
    rows: list[Row] = []
    num_bodies = int(bench.plan.seconds * 4_000)
    bodies = [request.SerializeToString() for request in bench.events.take(num_bodies)]
    for num_callers in (1, 64):
        answers: Answers = await closed_loop(
            bench.track, bodies, num_clients=num_callers, seconds=bench.plan.seconds / 2
        )
        rows.append({"mode": "unary", "callers": num_callers, "events_a_message": 1, **answers.figures()})
    for num_events, per_message in (
        (bench.plan.num_stream_singles, 1),
        (bench.plan.num_stream_events, _STREAM_MESSAGE_EVENTS),
    ):
        per_s = await track_stream(bench.gateway, bench.events, num_events, per_message=per_message)
        rows.append({"mode": "stream", "callers": 1, "events_a_message": per_message, "per_s": per_s})
    return rows
