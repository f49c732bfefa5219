"""Callers for `bench_serving.py`: closed and open loops over gRPC, event writers, and the wait for a change.

A caller sends bytes that were made before and keeps the answer's bytes for later, so that it takes as
little as it can of the cores that it shares with what it measures. Open loops count from the moment at
which a request was due, so a service that stalls is charged for all that had to wait (coordinated omission).
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from serving_world import new_event

from protos.headrace.v1.recommend_pb2 import (
    RecommendRequest,
    RecommendResponse,
    TrackRequest,
    TrackResponse,
    TrackStreamRequest,
    TrackStreamResponse,
)

_TIMEOUT_S = 30.0
_POLL_S = 0.001
_PATIENCE_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Call = Callable[[bytes], Awaitable[bytes]]


@dataclass
class Answers:
    """What callers got: seconds and body of each answer, failures by code, and how long it all took."""

    seconds: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall_s

    def figures(self) -> dict[str, float]:
        """p50, p99 in milliseconds, answers a second, and failures."""
        p50, p99 = np.percentile(np.array(self.seconds), (50, 99)) * 1e3
        failed = sum(self.failures.values())
        return {"p50_ms": float(p50), "p99_ms": float(p99), "per_s": self.per_s, "failed": float(failed)}

    def stages(self) -> dict[str, dict[str, float]]:
        """p50 and p99 in milliseconds of each stage that the gateway reports, of answers by a model."""
        taken: dict[str, list[float]] = {}
        for body in self.bodies:
            response = RecommendResponse.FromString(body)
            if response.fallback_reason or response.degraded:
                self.failures["not_by_a_model"] = self.failures.get("not_by_a_model", 0) + 1
            for stage in response.stages:
                taken.setdefault(stage.stage, []).append(stage.latency_ms)
        quantiles = {stage: np.percentile(values, (50, 99)) for stage, values in taken.items()}
        return {stage: {"p50_ms": float(q[0]), "p99_ms": float(q[1])} for stage, q in quantiles.items()}


def raw(channel: grpc.aio.Channel, method: str) -> Call:
    """A unary method of `/headrace.v1.` on bytes."""
    multi: Any = channel.unary_unary(f"/headrace.v1.{method}")

    async def call(body: bytes) -> bytes:
        answer: bytes = await multi(body, timeout=_TIMEOUT_S)
        return answer

    return call


def recommend_bodies(user_ids: Sequence[str], *, k: int, beam: int) -> list[bytes]:
    """One request for each user."""
    return [RecommendRequest(user_id=user, k=k, beam=beam).SerializeToString() for user in user_ids]


async def closed_loop(call: Call, bodies: Sequence[bytes], *, num_clients: int, seconds: float) -> Answers:
    """So many callers, each asking again when it was answered, for so long."""
    answers = Answers()
    next_body = cycle(bodies)
    until_s = time.perf_counter() + seconds

    async def client() -> None:
        while (sent_s := time.perf_counter()) < until_s:
            await _ask(call, next(next_body), sent_s, answers)

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    answers.wall_s = time.perf_counter() - started_s
    return answers


async def one_by_one(call: Call, bodies: Sequence[bytes]) -> Answers:
    """Each body once, one after the other."""
    answers = Answers()
    started_s = time.perf_counter()
    for body in bodies:
        await _ask(call, body, time.perf_counter(), answers)
    answers.wall_s = time.perf_counter() - started_s
    return answers


async def open_loop(call: Call, bodies: Sequence[bytes], *, per_s: float, seconds: float) -> Answers:
    """Requests that come by chance (Poisson) at a mean rate, whether or not the last one was answered."""
    answers = Answers()
    chance = random.Random(0)
    next_body = cycle(bodies)
    running: set[asyncio.Task[None]] = set()
    started_s = due_s = time.perf_counter()
    while due_s < started_s + seconds:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        task = asyncio.create_task(_ask(call, next(next_body), due_s, answers))
        running.add(task)
        task.add_done_callback(running.discard)
        due_s += chance.expovariate(per_s)
    if running:
        await asyncio.wait(running)
    answers.wall_s = time.perf_counter() - started_s
    return answers


async def _ask(call: Call, body: bytes, since_s: float, answers: Answers) -> None:
    try:
        answer = await call(body)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        answers.failures[code] = answers.failures.get(code, 0) + 1
    else:
        answers.seconds.append(time.perf_counter() - since_s)
        answers.bodies.append(answer)


class EventMaker:
    """Events by random users on random items, happening now."""

    def __init__(self, user_ids: Sequence[str], item_ids: Sequence[str]) -> None:
        self._chance = random.Random(1)
        self._user_ids = user_ids
        self._item_ids = item_ids

    def take(self, num_events: int) -> Iterator[TrackRequest]:
        """The next ones."""
        for _ in range(num_events):
            user, item = self._chance.choice(self._user_ids), self._chance.choice(self._item_ids)
            yield TrackRequest(event=new_event(user, item, time.time_ns() // 1_000_000))


async def track_steadily(call: Call, maker: EventMaker, *, per_s: float) -> None:
    """Tracks events at a steady rate until cancelled."""
    due_s = time.perf_counter()
    running: set[asyncio.Task[None]] = set()
    answers = Answers()
    while True:
        for request in maker.take(1):
            task = asyncio.create_task(_ask(call, request.SerializeToString(), due_s, answers))
            running.add(task)
            task.add_done_callback(running.discard)
        due_s += 1.0 / per_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))


async def track_stream(
    channel: grpc.aio.Channel, maker: EventMaker, num_events: int, *, per_message: int
) -> float:
    """Events a second of one `TrackStream`, from its first message to the answer that all are in Kafka."""
    bodies = []
    for _ in range(num_events // per_message):
        events = [request.event for request in maker.take(per_message)]
        message = TrackStreamRequest(event=events[0], events=events[1:])
        bodies.append(message.SerializeToString())

    async def send() -> AsyncIterator[bytes]:
        for body in bodies:
            yield body

    multi: Any = channel.stream_unary("/headrace.v1.RecommenderService/TrackStream")
    started_s = time.perf_counter()
    answer = TrackStreamResponse.FromString(await multi(send(), timeout=_TIMEOUT_S * 4))
    seconds = time.perf_counter() - started_s
    if answer.num_accepted != per_message * len(bodies):
        raise RuntimeError(f"{answer.num_accepted} of {per_message * len(bodies)} events were accepted")
    return answer.num_accepted / seconds


@dataclass(frozen=True, kw_only=True)
class Change:
    """Seconds until an answer showed an event: since it was sent, and since the broker had it."""

    since_sent_s: float
    since_confirmed_s: float


async def change_answer(recommend: Call, track: Call, user_id: str, *, k: int, beam: int) -> Change:
    """The user acts on the first item of the answer; asks until an answer was made from that history.

    Such an answer no longer holds the item: the history that rules it out is the one the model was given.
    """
    body = recommend_bodies([user_id], k=k, beam=beam)[0]
    before = RecommendResponse.FromString(await recommend(body))
    item_id = before.recommendations[0].item_id
    event = new_event(user_id, item_id, time.time_ns() // 1_000_000)
    sent_s = time.perf_counter()
    TrackResponse.FromString(await track(TrackRequest(event=event).SerializeToString()))
    confirmed_s = time.perf_counter()
    while time.perf_counter() - sent_s < _PATIENCE_S:
        answer = RecommendResponse.FromString(await recommend(body))
        now_s = time.perf_counter()
        if all(item.item_id != item_id for item in answer.recommendations):
            return Change(since_sent_s=now_s - sent_s, since_confirmed_s=now_s - confirmed_s)
        await asyncio.sleep(_POLL_S)
    raise RuntimeError(f"the event changed no answer in {_PATIENCE_S:.0f} s")


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time that each process has used so far, with those of its children without a name here (Linux)."""
    parent_of, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(stat.parent.name)
        parent_of[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return {
        name: sum(
            seconds
            for pid, seconds in used.items()
            if pid == own or (parent_of[pid] == own and pid not in pids.values())
        )
        for name, own in pids.items()
    }
