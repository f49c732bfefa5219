"""The ranker: cost of one masked pass, accuracy beside DIN, and what live statistics add.

    python tests/benchmarks/bench_ranker.py                      # everything; about an hour on one core
    python tests/benchmarks/bench_ranker.py --only cost          # or movielens, offline, stream, report
    python tests/benchmarks/bench_ranker.py --quick              # samples, minutes: does it run?

Each part says in its own file what it does: `ranker_cost.py`, `ranker_movielens.py`, `ranker_statistics.py`,
`ranker_stream.py`. Rows go into results/ranker.json as each part ends, in place of those of the same part.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from harness import console, emit, load_results, parser, progress, write_results
from quality_data import Problem, load_problem
from ranker_cost import cost_rows
from ranker_movielens import Budget as MovielensBudget
from ranker_movielens import movielens_rows
from ranker_report import report
from ranker_statistics import QUICK_BUDGET, Budget, offline_rows
from ranker_stream import stream_rows

PARTS = ("cost", "movielens", "offline", "stream")
QUICK_MOVIELENS = MovielensBudget(generator_epochs=1, rounds=2, seeds=(0,))
QUICK_USERS = {"movielens_small": 20, "amazon_beauty": 150}
# One pass and separate passes are the same computation in another order.
MAX_DIFFERENCE = 1e-5


def main() -> None:
    options = parser(__doc__, threads=1)
    options.add_argument("--only", help=f"some of {', '.join(PARTS)}, report; by default all")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = PARTS if arguments.only is None else tuple(arguments.only.split(","))
    if unknown := set(wanted) - {*PARTS, "report"}:
        raise SystemExit(f"bench_ranker: no part {', '.join(sorted(unknown))}")
    payload = _load(quick=arguments.quick)
    for part in (name for name in PARTS if name in wanted):
        console.print(f"[bold]{part}[/]", highlight=False)
        payload |= _run(part, quick=arguments.quick)
        write_results("ranker", payload, quick=arguments.quick)
    report(payload, quick=arguments.quick)
    if arguments.json:
        emit(payload)


def _run(part: str, *, quick: bool) -> dict[str, Any]:
    """What one part adds to the results."""
    if part == "cost":
        rows = cost_rows(quick=quick)
        worst = max(float(row["max_difference"]) for row in rows)
        if worst > MAX_DIFFERENCE:
            raise SystemExit(f"bench_ranker: one pass differs from separate passes by {worst:g}")
        return {"cost": rows}
    budget = QUICK_BUDGET if quick else Budget()
    with progress() as bars:
        tick = _ticking(bars)
        if part == "movielens":
            problem = _problem("movielens_small", quick)
            return {
                "movielens": movielens_rows(problem, QUICK_MOVIELENS if quick else MovielensBudget(), tick)
            }
        problem = _problem("amazon_beauty", quick)
        about = {"dataset": problem.name, "num_users": len(set(problem.events.user_ids))}
        if part == "offline":
            return {"offline": offline_rows(problem, budget, tick), "offline_data": about}
        rows, days = stream_rows(problem, budget, tick)
        about |= {"warm_up_days": budget.warm_up_days, "num_days": budget.num_days}
        return {"stream": rows, "stream_days": days, "stream_data": about}


def _ticking(bars: Any) -> Callable[[str, int, int], None]:
    """One bar for each kind of work."""
    tasks: dict[str, Any] = {}

    def tick(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    return tick


@cache
def _problem(name: str, quick: bool) -> Problem:
    """Each data set is read once; without the folder a quick run goes on with generated data and says so."""
    return load_problem(name, None, num_users=QUICK_USERS[name] if quick else None)


def _load(*, quick: bool) -> dict[str, Any]:
    """The rows of earlier runs of other parts."""
    try:
        before = load_results("ranker", quick=quick)
    except FileNotFoundError:
        return {}
    return {key: value for key, value in before.items() if key not in ("command", "quick", "machine")}


if __name__ == "__main__":
    main()
