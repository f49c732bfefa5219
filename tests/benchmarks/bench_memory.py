"""`make bench-memory`: what each process of a running stack holds and does, and by how much it grows.

    python tests/benchmarks/bench_memory.py              # about five minutes
    python tests/benchmarks/bench_memory.py --items 100000   # with a generated catalogue of so many
    python tests/benchmarks/bench_memory.py --quick      # does it run? on a small generated catalogue

Memory is the proportional set size, by kind of page (`memory_processes.py`): idle, after users asked while
events were learned, and for each further item and user (`memory_growth.py`). A process that does step by step
what the serving one does tells what takes it (`memory_causes.py`). Idle CPU is the share of one core that a
process takes while nobody asks anything; page faults are those of the process that answers, for an answer
right away and after a pause. The world is that of `bench_serving.py`.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import torch
from harness import console, emit, parser, show, write_results
from memory_causes import cause_rows
from memory_growth import growth_of_items, growth_of_users
from memory_processes import Memory, page_faults
from serving_load import one_by_one
from serving_measures import QUICK, Bench, Plan, bench_on, learning
from serving_world import World, copied, make_world, settings_for

from services.stack.children import TOGETHER
from services.stack.supervisor import Stack

_IDLE_S, _QUICK_IDLE_S = 30.0, 2.0
_PAUSE_S, _QUICK_PAUSE_S = 60.0, 1.0
_NUM_ANSWERS_AFTER_PAUSE = 20
_NUM_GROWN, _QUICK_NUM_GROWN = 4_000, 200
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def measure(world: World, *, quick: bool) -> dict[str, Any]:
    """`processes`: a row for each, and one for their sum; `faults`: a row for the answers after a pause."""
    idle_s = _QUICK_IDLE_S if quick else _IDLE_S
    num_grown = _QUICK_NUM_GROWN if quick else _NUM_GROWN
    with copied(world) as root:
        stack = Stack(settings_for(root))
        console.print("starting the services")
        async with stack:
            pids = stack.pids
            await asyncio.sleep(idle_s)
            idle = {name: Memory.of(pid).pss for name, pid in pids.items()}
            before = {name: cpu_s(pid) for name, pid in pids.items()}
            console.print(f"nobody asks anything for {idle_s:g} s")
            await asyncio.sleep(idle_s)
            idle_cpu = {name: (cpu_s(pid) - before[name]) / idle_s for name, pid in pids.items()}
            console.print("every user asks, and events are learned")
            async with bench_on(stack, world, QUICK if quick else Plan()) as bench:
                async with learning(bench):
                    await asyncio.sleep(idle_s)
                used = {name: Memory.of(pid) for name, pid in pids.items()}
                faults = await _faults(bench, _QUICK_PAUSE_S if quick else _PAUSE_S)
                console.print(f"{num_grown:,} new items and as many new users come")
                by_item = await growth_of_items(bench, num_grown)
                by_user = await growth_of_users(bench, num_grown)
    rows = [
        {
            "process": name,
            "idle_mb": idle[name],
            "used_mb": used[name].pss,
            "own_mb": used[name].own,
            "shared_mb": used[name].shared,
            "code_mb": used[name].code,
            "files_mb": used[name].files,
            "bytes_an_item": by_item[name],
            "bytes_a_user": by_user[name],
            "idle_cores": idle_cpu[name],
        }
        for name in pids
    ]
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "process"}
    return {"processes": [*rows, {"process": "all", **total}], "faults": faults}


async def _faults(bench: Bench, pause_s: float) -> dict[str, float]:
    """Page faults of the answering process for each answer, right away and after nobody asked for a while."""
    pid = bench.stack.pids.get(TOGETHER) or bench.stack.pids["gateway"]
    bodies = bench.bodies[:_NUM_ANSWERS_AFTER_PAUSE]
    found: dict[str, float] = {"pause_s": pause_s}
    for when, wait_s in (("before", 0.0), ("after", pause_s)):
        await asyncio.sleep(wait_s)
        minor, major = page_faults(pid)
        await one_by_one(bench.recommend, bodies[:1])
        first_minor, first_major = page_faults(pid)
        await one_by_one(bench.recommend, bodies[1:])
        later_minor, later_major = page_faults(pid)
        found |= {
            f"minor_first_{when}": first_minor - minor,
            f"major_first_{when}": first_major - major,
            f"minor_later_{when}": (later_minor - first_minor) / (len(bodies) - 1),
            f"major_later_{when}": (later_major - first_major) / (len(bodies) - 1),
        }
    return found


def main() -> None:
    """The command."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--items", type=int, default=0, help="a generated catalogue of so many items")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    world = make_world(quick=options.quick, num_items=options.items)
    payload = {
        **asyncio.run(measure(world, quick=options.quick)),
        "causes": cause_rows(world),
        "generated": world.generated,
        "num_items": len(world.dataset.items),
        "training_mb": world.training_mb,
    }
    if not options.items:
        write_results("memory", payload, quick=options.quick)
    titles = {
        "process": "",
        "idle_mb": "MB, idle",
        "used_mb": "MB, after traffic",
        "own_mb": "its own",
        "shared_mb": "made before the forks",
        "code_mb": "code",
        "files_mb": "mapped files",
        "bytes_an_item": "bytes an item",
        "bytes_a_user": "bytes a user",
        "idle_cores": "cores, idle",
    }
    show(f"memory and idle CPU, {len(world.dataset.items):,} items", payload["processes"], titles)
    show("what takes the memory of the process that answers", payload["causes"], {"cause": "", "mb": "MB"})
    console.print(f"page faults: {payload['faults']}", highlight=False)
    console.print(f"training took {world.training_mb:,.0f} MB more at its peak", highlight=False)
    if options.json:
        emit(payload)


if __name__ == "__main__":
    main()
