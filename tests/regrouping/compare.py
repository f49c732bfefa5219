"""`python tests/regrouping/compare.py BASE [HEAD]`: whether two commits compute the same, to the last bit.

For regroupings: commits that only move and rename must change nothing. Both are checked out in worktrees,
the same probe (`probe.py`) runs in each on this machine, and its figures are compared: the seeded loss curve,
the bytes of a release and of a checkpoint, and the answers of that release, with live inserts and a replay.
With `--each`, every commit between the two is compared with BASE. Exit code 1 where something differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_PROBE = Path(__file__).with_name("probe.py")
_ROOT = Path(__file__).parents[2]
_MAX_SHOWN = 20


def figures_of(commit: str) -> dict[str, Any]:
    """What the probe computes at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            run = subprocess.run(
                [sys.executable, str(_PROBE), str(tree)],
                cwd=tree,
                env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
                check=False,
                capture_output=True,
                text=True,
            )
        finally:
            _git("worktree", "remove", "--force", str(tree))
    if run.returncode:
        sys.exit(f"the probe fails at {commit}:\n{run.stderr[-2_000:]}")
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """A line for each value that is not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for name in sorted({*one, *other})
            for line in differences(one.get(name), other.get(name), f"{where} > {name}" if where else name)
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{where} [{n}]")]
    return [] if one == other else [f"{where}: {one} and {other}"]


def main() -> None:
    """Compares, prints one line a commit, and exits with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", help="the commit before the moves")
    parser.add_argument("head", nargs="?", default="HEAD", help="the commit after them")
    parser.add_argument("--each", action="store_true", help="every commit in between as well")
    arguments = parser.parse_args()
    revisions = f"{arguments.base}..{arguments.head}"
    commits = _git("rev-list", "--reverse", revisions).split() if arguments.each else [arguments.head]
    base, differ = figures_of(arguments.base), False
    for commit in commits:
        found = differences(base, figures_of(commit))
        differ |= bool(found)
        title = _git("log", "-1", "--format=%h %s", commit).strip()
        shown = [f"    {line:.300}" for line in found[:_MAX_SHOWN]]
        more = [f"    and {len(found) - _MAX_SHOWN} more"] if len(found) > _MAX_SHOWN else []
        lines = [f"{'DIFFERENT' if found else 'identical'}  {title}", *shown, *more]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    sys.exit(1 if differ else 0)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(_ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    main()
