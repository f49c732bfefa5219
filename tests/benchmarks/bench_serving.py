"""`make bench-serving`: all services together, as processes on loopback, on a release of Amazon Beauty.

    python tests/benchmarks/bench_serving.py             # minutes; writes results, plots, tables
    python tests/benchmarks/bench_serving.py --quick     # does it run? on a small generated catalogue
    python tests/benchmarks/bench_serving.py --against b341a12   # beside another commit, by turns
    python tests/benchmarks/bench_serving.py --layouts   # one process for three services, or three

Broker, seven services, the learner and the callers share this machine's cores. The first run makes the
world (a hurried release; some minutes) and keeps it under `.headrace/bench-serving`. Without the data set
it measures on a generated catalogue of about the same size, and says so.
"""

import asyncio
from argparse import ArgumentParser
from typing import Any

import torch
from harness import console, emit, markdown_table, parser, readme_table, show, write_results
from serving_batching import batching_rows
from serving_measures import (
    BEAM,
    EVENTS_PER_S,
    QUICK,
    K,
    Plan,
    bench_on,
    change_row,
    learning,
    recommend_rows,
    track_rows,
    user_rows,
)
from serving_pairs import commit_rows, layout_rows, pair_table
from serving_pauses import pause_rows
from serving_report import publish
from serving_world import World, copied, make_world, settings_for

from services.stack.supervisor import Stack

# gorse 0.5.9, what a user would pick instead: measured elsewhere, on such a machine, not in this run.
GORSE: dict[str, Any] = {
    "system": "gorse 0.5.9",
    "measured": "elsewhere, on two cores of the same kind; not in this run",
    "one_client_p50_ms": 9.1,
    "one_client_p99_ms": 81.0,
    "eight_clients_per_s": 106.0,
    "eight_clients_p99_ms": 495.0,
    "insert_single_per_s": 389.0,
    "insert_batched_per_s": 4_550.0,
}


async def measure(world: World, plan: Plan) -> dict[str, Any]:
    """All rows, on one stack; it is stopped however this ends."""
    payload: dict[str, Any] = {"recommend": [], "change": [], "gorse": GORSE}
    console.print("generator and ranker in this process, with and without pauses")
    payload["pauses"] = pause_rows(world, plan.num_calls)
    with copied(world) as root:
        stack = Stack(settings_for(root))
        console.print("starting the services")
        async with stack, bench_on(stack, world, plan) as bench:
            console.print("Recommend, the learner idle")
            payload["recommend"] += await recommend_rows(bench, "idle")
            payload["users"] = await user_rows(bench)
            payload["change"].append(await change_row(bench, "idle"))
            console.print(f"Recommend while learning from {EVENTS_PER_S:g} events/s")
            async with learning(bench):
                payload["recommend"] += await recommend_rows(bench, "learning")
                payload["change"].append(await change_row(bench, "learning"))
            console.print("the generator alone, with and without micro-batching")
            payload["batching"] = await batching_rows(bench)
            # last: all services read for a while what it wrote
            console.print("Track")
            payload["track"] = await track_rows(bench)
    return payload


def compare(commit: str, *, rounds: int, seconds: float, as_json: bool) -> None:
    """This tree beside a commit: results, and the table of the documents."""
    rows = commit_rows(commit, rounds=rounds, seconds=seconds)
    show_pairs("serving-against", f"beside {commit}", rows, pair_table(rows), as_json=as_json)


def compare_layouts(*, rounds: int, seconds: float, as_json: bool) -> None:
    """One process for gateway, generator and ranker beside three: results, and the table of the documents."""
    rows = layout_rows(rounds=rounds, seconds=seconds)
    table = pair_table(rows, "apart", "together")
    show_pairs("serving-layouts", "together beside apart", rows, table, as_json=as_json)


def show_pairs(
    name: str, title: str, rows: list[dict[str, Any]], table: list[dict[str, Any]], *, as_json: bool
) -> None:
    """The table, here and in the documents, and the results in a file."""
    show(f"serving while learning, {title}", table, list(table[0]))
    readme_table(name, markdown_table(table, list(table[0])), quick=False)
    path = write_results(name, {"rows": rows}, quick=False)
    if as_json:
        emit({"rows": rows})
    console.print(f"results: {path}")


def _parser() -> ArgumentParser:
    result = parser(__doc__, threads=1)
    result.add_argument("--against", metavar="COMMIT", help="measure beside this commit, by turns")
    result.add_argument("--layouts", action="store_true", help="measure the layouts beside each other")
    result.add_argument("--rounds", type=int, default=3, help="with those: turns of each")
    result.add_argument("--seconds", type=float, default=8.0, help="with those: seconds for each load")
    return result


def main() -> None:
    """The command."""
    options = _parser().parse_args()
    if options.against:
        return compare(options.against, rounds=options.rounds, seconds=options.seconds, as_json=options.json)
    if options.layouts:
        return compare_layouts(rounds=options.rounds, seconds=options.seconds, as_json=options.json)
    torch.set_num_threads(options.threads)
    world = make_world(quick=options.quick)
    payload = asyncio.run(measure(world, QUICK if options.quick else Plan()))
    payload["world"] = {
        "dataset": world.dataset.name,
        "generated": world.generated,
        "num_items": len(world.dataset.items),
        "num_users": len(world.user_ids),
        "beam": BEAM,
        "k": K,
        "events_per_s_while_learning": EVENTS_PER_S,
    }
    publish(payload, world, quick=options.quick)
    path = write_results("serving", payload, quick=options.quick)
    if options.json:
        emit(payload)
    console.print(f"results: {path}")


if __name__ == "__main__":
    main()
