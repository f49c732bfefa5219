"""Recommend requests beside the replay: what a client sees while the service learns and swaps.

Owns the request loop, the check of every answer and the latency figures. Knows only the public API.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from protos.headrace.v1 import recommend_pb2, recommend_pb2_grpc


@dataclass
class TrafficReport:
    """What the answers were like; `latencies_ms` by stage, one entry per answered request."""

    num_answered: int = 0
    num_fallbacks: int = 0
    problems: list[str] = field(default_factory=list)
    latencies_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    releases: list[str] = field(default_factory=list)

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """p50 and p99 in milliseconds for each stage, in the order the stages ran."""
        return {
            stage: (float(np.percentile(values, 50)), float(np.percentile(values, 99)))
            for stage, values in self.latencies_ms.items()
            if values
        }


def problem_of(response: recommend_pb2.RecommendResponse, *, k: int, known: set[str]) -> str | None:
    """What is wrong with an answer, or None: k distinct items of the catalogue, or a reason for fewer."""
    item_ids = [item.item_id for item in response.recommendations]
    if len(set(item_ids)) != len(item_ids):
        return "an item twice in one answer"
    strangers = [item_id for item_id in item_ids if item_id not in known]
    if strangers:
        return f"{len(strangers)} items that are not in the catalogue"
    if len(item_ids) < k and not response.shortfall_reason:
        return f"{len(item_ids)} items instead of {k}, and no reason"
    if not response.release_id and not response.fallback_reason:
        return "neither a release nor a fallback made this answer"
    return None


class Traffic:
    """Asks for recommendations of random users at a steady rate until it is stopped."""

    def __init__(
        self,
        stub: "recommend_pb2_grpc.RecommenderServiceAsyncStub",
        *,
        user_ids: Sequence[str],
        known_item_ids: set[str],
        requests_per_s: float = 5.0,
        k: int = 10,
        seed: int = 0,
    ) -> None:
        self._stub = stub
        self._user_ids = user_ids
        self._known = known_item_ids
        self._period_s = 1.0 / requests_per_s
        self._k = k
        self._random = random.Random(seed)
        self.report = TrafficReport()

    async def run(self) -> None:
        """Asks forever; cancel the task to stop."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.create_task(self._ask(self._random.choice(self._user_ids)))
                running.add(task)
                task.add_done_callback(running.discard)
                await asyncio.sleep(self._period_s)
        finally:
            if running:
                await asyncio.wait(running, timeout=5.0)

    async def _ask(self, user_id: str) -> None:
        report = self.report
        request = recommend_pb2.RecommendRequest(user_id=user_id, k=self._k)
        try:
            response = await self._stub.Recommend(request, timeout=10.0)
        except grpc.aio.AioRpcError as error:
            report.problems.append(f"{error.code().name}: {error.details()}")
            return
        report.num_answered += 1
        problem = problem_of(response, k=self._k, known=self._known)
        if problem:
            report.problems.append(problem)
        if response.fallback_reason:
            report.num_fallbacks += 1
            return
        if response.release_id not in report.releases:
            report.releases.append(response.release_id)
        for stage in response.stages:
            report.latencies_ms[stage.stage].append(stage.latency_ms)
