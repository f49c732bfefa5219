"""A child started through `services.stack.launch` ends when its parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.stack.launch import ORPHAN_S

_PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "services.stack.launch", str(os.getpid()), "sleeper"])
print(child.pid, flush=True)
child.wait()
"""


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


_DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.mark.parametrize(("before", "patience_s"), [("", 5.0), (_DEAF, ORPHAN_S + 5.0)], ids=["", "deaf"])
def test_kill_9_of_the_parent_ends_the_child(tmp_path: Path, before: str, patience_s: float) -> None:
    (tmp_path / "sleeper.py").write_text(f"{before}import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "up\n"
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + patience_s
        while _is_running(child_pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_running(child_pid)


def test_a_parent_that_died_before_is_noticed() -> None:
    not_its_parent = "1"
    ended = subprocess.run(
        [sys.executable, "-m", "services.stack.launch", not_its_parent, "this"], check=False
    )
    assert ended.returncode == 1
