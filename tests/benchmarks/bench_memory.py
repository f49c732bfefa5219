"""`make bench-memory`: what each process of a running stack holds and does, before and after traffic.

    python tests/benchmarks/bench_memory.py              # about three minutes
    python tests/benchmarks/bench_memory.py --items 100000   # with a generated catalogue of so many
    python tests/benchmarks/bench_memory.py --quick      # does it run? on a small generated catalogue

Memory is the proportional set size (pages that processes share are divided among them), from
`/proc/PID/smaps_rollup`; idle CPU is the share of one core that a process takes while nobody asks anything.
The world is that of `bench_serving.py`.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import torch
from harness import console, emit, parser, show, write_results
from serving_measures import QUICK, Plan, bench_on, learning
from serving_world import World, copied, make_world, settings_for

from services.stack.supervisor import Stack

_IDLE_S, _QUICK_IDLE_S = 30.0, 2.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """The proportional set size of a process, in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} tells no Pss")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def measure(world: World, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each process, and one for their sum."""
    idle_s = _QUICK_IDLE_S if quick else _IDLE_S
    with copied(world) as root:
        stack = Stack(settings_for(root))
        console.print("starting the services")
        async with stack:
            pids = stack.pids
            await asyncio.sleep(idle_s)
            idle_mb = {name: pss_mb(pid) for name, pid in pids.items()}
            before = {name: cpu_s(pid) for name, pid in pids.items()}
            console.print(f"nobody asks anything for {idle_s:g} s")
            await asyncio.sleep(idle_s)
            idle_cpu = {name: (cpu_s(pid) - before[name]) / idle_s for name, pid in pids.items()}
            console.print("every user asks, and events are learned")
            async with bench_on(stack, world, QUICK if quick else Plan()) as bench, learning(bench):
                await asyncio.sleep(idle_s)
            used_mb = {name: pss_mb(pid) for name, pid in pids.items()}
    rows = [
        {"process": name, "idle_mb": idle_mb[name], "used_mb": used_mb[name], "idle_cores": idle_cpu[name]}
        for name in pids
    ]
    total = {key: sum(row[key] for row in rows) for key in ("idle_mb", "used_mb", "idle_cores")}
    return [*rows, {"process": "all", **total}]


def main() -> None:
    """The command."""
    arguments = parser(__doc__, threads=1)
    arguments.add_argument("--items", type=int, default=0, help="a generated catalogue of so many items")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    world = make_world(quick=options.quick, num_items=options.items)
    rows = asyncio.run(measure(world, quick=options.quick))
    payload = {
        "processes": rows,
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
        "idle_cores": "cores, idle",
    }
    show(f"memory and idle CPU, {len(world.dataset.items):,} items", rows, titles)
    console.print(f"training took {world.training_mb:,.0f} MB more at its peak", highlight=False)
    if options.json:
        emit(payload)


if __name__ == "__main__":
    main()
