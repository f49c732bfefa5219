"""This tree beside an earlier commit, or beside itself in another layout, by turns, for `bench_serving.py`.

The commit is checked out and set up under `.headrace/against/`, with an environment of its own, the first
time. Each turn starts a stack, measures it (`serving_rows.py`) and stops it; a figure is the median of its
turns, and a ratio compares the turns that stood beside each other.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness import REPOSITORY, console

_AGAINST = REPOSITORY / ".headrace" / "against"
_DRIVER = Path(__file__).with_name("serving_rows.py")
_FIGURES = ("p50_ms", "p95_ms", "p99_ms", "requests_per_s", "cpu_ms")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is measured in one turn: a tree, with variables of its own."""

    tree: str
    folder: Path
    commit: str
    variables: Mapping[str, str] = field(default_factory=dict)


def commit_rows(commit: str, *, rounds: int, seconds: float) -> list[Row]:
    """All rows of a commit ("before") and of this tree ("now")."""
    name = _git("rev-parse", "--short", commit)
    before = Turn(tree="before", folder=_prepared(name), commit=name)
    return _pair_rows(before, Turn(tree="now", folder=REPOSITORY, commit=_here()), rounds, seconds)


def layout_rows(*, rounds: int, seconds: float) -> list[Row]:
    """All rows of this tree in the layout "apart" ("before") and as it is ("now")."""
    apart = {"HEADRACE_LAYOUT": "apart"}
    before = Turn(tree="before", folder=REPOSITORY, commit=_here(), variables=apart)
    return _pair_rows(before, Turn(tree="now", folder=REPOSITORY, commit=_here()), rounds, seconds)


def _pair_rows(before: Turn, now: Turn, rounds: int, seconds: float) -> list[Row]:
    """The rows of both, each with `tree` and `round`. Before first, then now first."""
    rows = []
    for number in range(rounds):
        for turn in (before, now) if number % 2 == 0 else (now, before):
            variables = " ".join(f"{name}={value}" for name, value in turn.variables.items())
            console.print(f"round {number + 1} of {rounds}: {turn.tree} ({turn.commit}) {variables}".rstrip())
            rows += [row | {"tree": turn.tree, "round": number} for row in _measured(turn, seconds)]
    return rows


def _here() -> str:
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")


def pair_table(rows: list[Row], before: str = "before", now: str = "now") -> list[Row]:
    """One line for each load and figure: both medians, and the ratios now / before of the rounds; `before`
    and `now` are their names in it."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        for figure in _FIGURES:
            if figure in row:
                values[row["load"], figure][row["tree"]][row["round"]] = row[figure]
    return [
        {
            "load": load,
            "figure": figure.replace("_", " "),
            before: f"{median(by['before'].values()):,.1f}",
            now: f"{median(by['now'].values()):,.1f}",
            f"{now} / {before}": ", ".join(
                f"{by['now'][n] / by['before'][n]:.2f}" for n in sorted(by["now"])
            ),
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


def _measured(turn: Turn, seconds: float) -> list[Row]:
    folder = turn.folder
    environment = os.environ | {"PYTHONPATH": f"{folder / 'tests' / 'benchmarks'}:{folder}"} | turn.variables
    data = REPOSITORY.parent / "shared" / "data"
    if data.exists():
        environment["HEADRACE_BENCH_DATA"] = str(data)
    # -P: the modules beside the driver are this tree's
    command = [str(folder / ".venv" / "bin" / "python"), "-P", str(_DRIVER), str(seconds), turn.commit]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()
