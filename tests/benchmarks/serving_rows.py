"""Rows of one tree for `serving_pairs.py`: run in the tree's folder, by the tree's Python, with its own code.

    cd TREE && PYTHONPATH=TREE/tests/benchmarks:TREE PYTHON -P serving_rows.py SECONDS COMMIT

Prints JSON lines: one row a load while 50 events/s are learned, then `Track`, then event to changed answer.
It may use only what the benchmarks of every commit since b341a12 have.
"""

import asyncio
import json
import sys
import urllib.request
from typing import Any

import torch
from bench_serving import Stack  # wherever the tree has it
from serving_measures import Bench, Plan, bench_on, change_row, learning, recommend_rows, track_rows
from serving_world import World, copied, make_world, settings_for

_NAME = "headrace_event_to_weights_seconds_bucket"


async def measure(world: World, plan: Plan, commit: str) -> None:
    """Prints the rows of one stack; it is stopped however this ends."""
    with copied(world) as root:
        stack = Stack(settings_for(root))
        async with stack, bench_on(stack, world, plan) as bench:
            layout = getattr(stack.settings, "layout", "apart")
            async with learning(bench):
                before = await asyncio.to_thread(_event_to_step, bench)
                rows = await recommend_rows(bench, "learning")
                p95_s = _quantile(before, await asyncio.to_thread(_event_to_step, bench), 0.95)
                change = await change_row(bench, "learning")
            for row in rows:
                say(
                    load=row["load"],
                    learner=row["learner"],
                    learned_per_s=row["events_learned_per_s"],
                    event_to_step_p95_s=p95_s,
                    p50_ms=row["p50_ms"],
                    p99_ms=row["p99_ms"],
                    requests_per_s=row["per_s"],
                    failed=row["failed"],
                    cpu_ms=sum(row["cpu_ms_per_answer"].values()),
                    cpu_ms_by_process=row["cpu_ms_per_answer"],
                    layout=layout,
                    commit=commit,
                )
            say(
                load="event to changed answer",
                p50_ms=change["since_sent_median_ms"],
                p95_ms=change["since_sent_p95_ms"],
                commit=commit,
            )
            for row in await track_rows(bench):
                load = f"Track, {row['mode']}, {row['callers']} at once, {row['events_a_message']} a message"
                say(load=load, requests_per_s=row["per_s"], commit=commit)


def say(**row: Any) -> None:
    """Prints one row."""
    sys.stdout.write(f"{json.dumps(row)}\n")
    sys.stdout.flush()


def _event_to_step(bench: Bench) -> dict[float, float]:
    """The learner's cumulative counts of events by seconds from the broker to the step that learned them."""
    endpoints = bench.settings.endpoints
    url = f"http://{endpoints.host}:{endpoints.metrics_port('learner')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith(_NAME)]
    return {float(name.split('le="')[1].split('"')[0]): float(count) for name, _, count in found}


def _quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """The quantile, evenly spread inside its bucket; NaN where nothing was learned or it is in the last."""
    counts = {end: after[end] - before.get(end, 0.0) for end in sorted(after)}
    wanted = share * max(counts.values(), default=0.0)
    begin, below = 0.0, 0.0
    for end, count in counts.items():
        if wanted and count >= wanted and end < float("inf"):
            return round(begin + (end - begin) * (wanted - below) / (count - below), 2)
        begin, below = end, count
    return float("nan")


def main() -> None:
    """The command."""
    seconds, commit = float(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    world = make_world(quick=False)
    plan = Plan(seconds=seconds, num_users=300, num_stream_singles=5_000, num_stream_events=50_000)
    asyncio.run(measure(world, plan, commit))


if __name__ == "__main__":
    main()
