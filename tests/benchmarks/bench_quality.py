"""How good the recommendations are: Headrace, baselines and ablations on one split, in one command.

    python tests/benchmarks/bench_quality.py                        # everything; hours on two cores
    python tests/benchmarks/bench_quality.py --only sasrec,tiger    # some of it; other rows stay as they are
    python tests/benchmarks/bench_quality.py --only ablations --epochs 5
    python tests/benchmarks/bench_quality.py --only report          # tables and plots of what is there
    python tests/benchmarks/bench_quality.py --quick                # a sample, minutes: does it run?

Leave-one-out: each user's last event is the test, the one before it validation; every item of the
catalogue is ranked except those that the user already had. Systems report test (once) and, where
they have it, validation; ablations report validation only. Rows go into results/quality.json as each part
ends; a row of the same system, dataset, split and seed is replaced.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from harness import console, emit, load_results, parser, write_results
from quality_ablations import ABLATIONS, ablation_rows
from quality_data import Problem, load_problem
from quality_published import published_rows
from quality_report import report
from quality_systems import SYSTEMS, Budget, Row

from models.progress import Progress
from services.cli import terminal
from streaming.errors import DatasetError

KEY = ("system", "dataset", "split", "seed")
MAIN_DATASET = "amazon_beauty"
MANY_SEEDS = (0, 1, 2)
QUICK_USERS, QUICK_ABLATION_USERS = 500, 150


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    parts = chosen_parts(arguments.only)
    try:
        for part in parts:
            for seed in seeds_of(part, arguments.seeds, quick=arguments.quick):
                budget = Budget(
                    seed=seed,
                    epochs=arguments.epochs,
                    minutes=arguments.minutes,
                    threads=arguments.threads,
                    quick=arguments.quick,
                )
                console.print(f"[bold]{part}[/], seed {seed}", highlight=False)
                rows = run_part(part, arguments.data, budget)
                store(rows, threads=arguments.threads, quick=arguments.quick)
    except (FileNotFoundError, DatasetError) as error:
        raise SystemExit(f"bench_quality: {error}") from error
    payload = store([] if arguments.quick else published_rows(), threads=None, quick=arguments.quick)
    report(payload["rows"], quick=arguments.quick)
    if arguments.json:
        emit(payload)


def run_part(part: str, data: Path | None, budget: Budget) -> list[Row]:
    """The rows of one system or ablation."""
    with shown() as progress:
        if part in SYSTEMS:
            problem = problem_of(MAIN_DATASET, data, QUICK_USERS if budget.quick else None)
            return SYSTEMS[part](problem, budget, progress)
        name = part.removeprefix("ablation:")
        dataset = ABLATIONS[name].dataset
        folder = data if dataset == MAIN_DATASET else None
        problem = problem_of(dataset, folder, QUICK_ABLATION_USERS if budget.quick else None)
        return ablation_rows(name, problem, budget, progress)


@cache
def problem_of(name: str, data: Path | None, num_users: int | None) -> Problem:
    """Each data set is read once."""
    return load_problem(name, data, num_users=num_users)


def chosen_parts(only: str | None) -> list[str]:
    """The parts that `--only` names, all without it; ValueError for one that there is not."""
    every = [*SYSTEMS, *(f"ablation:{name}" for name in ABLATIONS)]
    if only is None:
        return every
    parts: list[str] = []
    for part in only.split(","):
        if part == "report":
            continue
        if part == "ablations":
            parts += [name for name in every if name.startswith("ablation:")]
        elif part in every:
            parts.append(part)
        else:
            raise SystemExit(f"no part {part!r}; there are report, ablations, {', '.join(every)}")
    return parts


def seeds_of(part: str, seeds: str | None, *, quick: bool) -> list[int]:
    """`--seeds`, or three for Headrace and one for everything else."""
    if seeds is not None:
        return [int(seed) for seed in seeds.split(",")]
    return list(MANY_SEEDS) if part == "headrace" and not quick else [0]


def store(rows: list[Row], *, threads: int | None, quick: bool) -> dict[str, Any]:
    """Puts rows in place of those with the same key, in quality.json; returns what is there now."""
    try:
        before = load_results("quality", quick=quick)["rows"]
    except FileNotFoundError:
        before = []
    new = {tuple(row[name] for name in KEY): row | {"threads": threads} for row in rows}
    merged = {tuple(row[name] for name in KEY): row for row in before} | new
    payload = {"rows": list(merged.values())}
    write_results("quality", payload, quick=quick)
    return payload


@contextmanager
def shown() -> Iterator[Progress]:
    """Progress bars, or lines where there is no terminal."""
    with terminal.progress_bars() as bars:
        yield bars


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--only", help="parts, comma-separated: report, ablations, or names from --help")
    options.add_argument("--seeds", help="comma-separated; without it 0,1,2 for headrace, 0 for the rest")
    options.add_argument("--epochs", type=int, help="at most so many epochs")
    options.add_argument("--minutes", type=float, help="at most so many minutes of training")
    options.add_argument("--data", type=Path, help="another data folder in place of amazon_beauty")
    return options.parse_args()


if __name__ == "__main__":
    main()
