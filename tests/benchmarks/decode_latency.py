"""The timing itself: all systems of a setting take turns, so that what disturbs one disturbs all.

A turn is some calls in a row: of a single call between others' work the caches would be timed (what a
pause costs a service is in `serving_pauses.py`).

Knows calls and durations, not what is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decode_worlds import Cell
from harness import percentiles, seconds_of

_MAX_TURN = 10


@dataclass(frozen=True)
class Effort:
    """How long to measure: each cell about `budget_s`, at least and at most so many calls."""

    budget_s: float
    min_calls: int
    max_calls: int

    def num_calls(self, first_s: float) -> int:
        """How many calls of this length."""
        return max(self.min_calls, min(self.max_calls, int(self.budget_s / max(first_s, 1e-6))))


def measure(
    cells: Sequence[Cell], effort: Effort, tick: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """A row for each cell: `facts`, `latency_ms_p50`, `latency_ms_p99`, `requests_per_s` and `num_calls`.

    Every cell is called once to warm up and to see how often it can be called; those calls are then
    spread evenly over rounds in which the cells take turns. All of these count. `tick` is called after
    each cell.
    """
    for cell in cells:
        cell.work()
    wanted = [effort.num_calls(seconds_of(cell.work)) for cell in cells]
    num_rounds = -(-max(wanted, default=0) // _MAX_TURN)
    durations: list[list[float]] = [[] for _ in cells]
    for round_ in range(num_rounds):
        for n, cell in enumerate(cells):
            num_calls = (round_ + 1) * wanted[n] // num_rounds - round_ * wanted[n] // num_rounds
            durations[n] += [seconds_of(cell.work) for _ in range(num_calls)]
    rows = []
    for cell, seconds in zip(cells, durations, strict=True):
        found = percentiles(seconds)
        batch = cell.facts.get("batch", 1)
        rows.append(
            {
                **cell.facts,
                "latency_ms_p50": found["p50_ms"],
                "latency_ms_p99": found["p99_ms"],
                "requests_per_s": batch * len(seconds) / sum(seconds),
                "num_calls": len(seconds),
            }
        )
        tick()
    return rows
