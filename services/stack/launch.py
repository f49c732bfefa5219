"""`python -m services.stack.launch PARENT_PID MODULE`: runs a module that ends when its parent does.

The kernel sends SIGTERM to this process when the process that started it dies, however it died, so
that no service outlives `headrace up` (Linux only). Whatever does not stop then is killed, as `up` would: a
client library may wait for ever for a broker that died with it.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_POLL_INTERVAL_S = 1.0
ORPHAN_S = 10.0
"""So long an orphan may take to stop, in seconds."""


def end_with_parent(parent_pid: int) -> None:
    """SIGTERM at the parent's death, and SIGKILL later; ends at once if the parent is already gone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        # It may have died before the call above.
        if os.getppid() != parent_pid:
            sys.exit(1)
    threading.Thread(target=_kill_orphan, args=(parent_pid,), daemon=True).start()


def name_process(name: str) -> None:
    """What `top` and `ps -o comm` show for this process, its first 15 characters (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _kill_orphan(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_INTERVAL_S)
    time.sleep(ORPHAN_S)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the named module as `__main__`."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    end_with_parent(parent_pid)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
