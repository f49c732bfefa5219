"""RecBole's SASRec beside Headrace: its environment, the call, and a check that the split is the same."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import REPOSITORY, console
from quality_data import Problem, user_numbers

from models.arrays import Int64Array
from models.batch import EventBatch
from models.measures.ranking_metrics import ranking_metrics

ENVIRONMENT = REPOSITORY / ".venv-recbole"
HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "recbole_requirements.txt"
PROGRAM = HERE / "recbole_sasrec.py"


def sasrec_rows(
    problem: Problem,
    *,
    seed: int,
    epochs: int | None,
    minutes: float | None,
    threads: int,
    check: bool,
    progress: Callable[[str, dict[str, float]], None],
) -> list[dict[str, Any]]:
    """Trains SASRec on the training events; figures of its best validation epoch on both splits.

    Raises RuntimeError where RecBole's split is not ours, or its program failed.
    """
    python = recbole_python()
    with tempfile.TemporaryDirectory() as scratch:
        events, out = Path(scratch) / "events.npz", Path(scratch) / "ranks.npz"
        columns = event_columns(problem.events)
        np.savez(events, **columns)  # type: ignore[arg-type]
        command = [str(python), "-W", "ignore", str(PROGRAM), "--events", str(events), "--out", str(out)]
        command += ["--seed", str(seed), "--threads", str(threads)]
        command += ["--epochs", str(epochs)] if epochs else []
        command += ["--minutes", str(minutes)] if minutes else []
        command += ["--check"] if check else []
        _run(command, scratch, threads, progress)
        with np.load(out) as found:
            result = {name: found[name] for name in found.files}
    rows = []
    for split, held_out in (("validation", problem.split.validation), ("test", problem.split.test)):
        _require_same_cases(problem.events, held_out, result[f"{split}_user"], result[f"{split}_item"])
        rows.append(
            {
                "system": "SASRec (RecBole)",
                "dataset": problem.name,
                "split": split,
                "seed": seed,
                **ranking_metrics(result[f"{split}_rank"]),
                "train_minutes": float(result["minutes"]),
                "best_epoch": int(result["best_epoch"]),
            }
        )
    return rows


def event_columns(events: EventBatch) -> dict[str, Int64Array]:
    """User numbers, item rows and each event's place in its user's sequence (time, then stream order)."""
    user_N = user_numbers(events).numpy()
    order_N = np.lexsort((events.time_ms_N, user_N))
    first_N = np.searchsorted(user_N[order_N], user_N[order_N])
    position_N = np.empty(len(user_N), dtype=np.int64)
    position_N[order_N] = np.arange(len(user_N)) - first_N
    return {"user": user_N, "item": events.item_N, "position": position_N}


def recbole_python() -> Path:
    """The interpreter of RecBole's environment, which is made when it is not there or its list changed."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    console.print("making .venv-recbole for RecBole (once; minutes where torch must be fetched)")
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = str(REPOSITORY / "constraints.txt")
    torch_version = next(
        line
        for line in Path(constraints).read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    subprocess.run([*install, torch_version, "numpy<2"], check=True)
    subprocess.run([*install, "--no-deps", "--requirement", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(
    command: list[str], scratch: str, threads: int, progress: Callable[[str, dict[str, float]], None]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads)}
    # in the scratch folder: RecBole writes its tensorboard logs into the working directory
    with subprocess.Popen(
        command, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress("SASRec (RecBole)", json.loads(line))
    if process.returncode:
        raise RuntimeError(f"RecBole's program ended with {process.returncode}")


def _require_same_cases(
    events: EventBatch, held_out: EventBatch, user_B: Int64Array, item_B: Int64Array
) -> None:
    users, number_N = np.unique(np.asarray(events.user_ids, dtype=np.str_), return_inverse=True)
    del number_N
    ours_B = np.searchsorted(users, np.asarray(held_out.user_ids, dtype=np.str_))
    ours = sorted(zip(ours_B.tolist(), held_out.item_N.tolist(), strict=True))
    if ours != sorted(zip(user_B.tolist(), item_B.tolist(), strict=True)):
        raise RuntimeError("RecBole held out other events than we do")
