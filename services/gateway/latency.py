"""Latencies of the last answers by stage, kept in the process for the console.

Prometheus has the long view; this is the short one, exact and without a server to ask.
"""

from collections import defaultdict, deque
from collections.abc import Mapping

import numpy as np

STAGES = ("history", "generate", "rank", "policy", "total")


class LatencyWindow:
    """The newest `size` latencies of each stage, in milliseconds."""

    def __init__(self, size: int = 1_000) -> None:
        self._stages: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=size))
        self.num_answers = 0

    def add(self, latency_ms: Mapping[str, float]) -> None:
        """Takes the stages of one answer."""
        self.num_answers += 1
        for stage, value in latency_ms.items():
            self._stages[stage].append(value)

    def summary(self) -> dict[str, dict[str, float]]:
        """p50 and p99 in milliseconds of each stage that was measured, in the order of STAGES."""
        answer = {}
        for stage in STAGES:
            if self._stages[stage]:
                p50, p99 = np.percentile(np.array(self._stages[stage]), (50, 99))
                answer[stage] = {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
        return answer
