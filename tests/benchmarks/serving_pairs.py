"""This tree beside an earlier commit, by turns, for `bench_serving.py --against COMMIT`.

The commit is checked out and set up under `.headrace/against/`, with an environment of its own, the first
time. Each turn starts a stack, measures it (`serving_rows.py`) and stops it; a figure is the median of its
turns, and a ratio compares the turns that stood beside each other.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from harness import REPOSITORY, console

_AGAINST = REPOSITORY / ".headrace" / "against"
_DRIVER = Path(__file__).with_name("serving_rows.py")
_FIGURES = ("p50_ms", "p95_ms", "p99_ms", "requests_per_s", "cpu_ms")

Row = dict[str, Any]


def pair_rows(commit: str, *, rounds: int, seconds: float) -> list[Row]:
    """All rows of both trees; each has `tree` ("before" or "now") and `round`. Old first, then new first."""
    name = _git("rev-parse", "--short", commit)
    here = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    before = _prepared(name)
    rows = []
    for number in range(rounds):
        turns = [("before", before, name), ("now", REPOSITORY, here)]
        for tree, folder, label in turns if number % 2 == 0 else turns[::-1]:
            console.print(f"round {number + 1} of {rounds}: {tree} ({label})")
            rows += [row | {"tree": tree, "round": number} for row in _measured(folder, label, seconds)]
    return rows


def pair_table(rows: list[Row]) -> list[Row]:
    """One line for each load and figure: both medians, and the ratios now / before of the rounds."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        for figure in _FIGURES:
            if figure in row:
                values[row["load"], figure][row["tree"]][row["round"]] = row[figure]
    return [
        {
            "load": load,
            "figure": figure.replace("_", " "),
            "before": f"{median(by['before'].values()):,.1f}",
            "now": f"{median(by['now'].values()):,.1f}",
            "now / before": ", ".join(f"{by['now'][n] / by['before'][n]:.2f}" for n in sorted(by["now"])),
        }
        for (load, figure), by in values.items()
    ]


def _prepared(commit: str) -> Path:
    """The commit's tree with an environment of its own."""
    folder = _AGAINST / commit
    if not (folder / ".venv" / ".installed").exists():
        console.print(f"setting up {commit} under {folder.relative_to(REPOSITORY)}: some minutes, once")
        if not folder.exists():
            _git("worktree", "add", "--detach", str(folder), commit)
        subprocess.run(["make", "setup"], cwd=folder, check=True, stdout=sys.stderr)
    return folder


def _measured(folder: Path, label: str, seconds: float) -> list[Row]:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'tests' / 'benchmarks'}:{folder}"}
    data = REPOSITORY.parent / "shared" / "data"
    if data.exists():
        environment["HEADRACE_BENCH_DATA"] = str(data)
    # -P: the modules beside the driver are this tree's
    command = [str(folder / ".venv" / "bin" / "python"), "-P", str(_DRIVER), str(seconds), label]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()
