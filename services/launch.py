"""`python -m services.launch PARENT_PID MODULE`: runs a module that ends when its parent does.

The kernel sends SIGTERM to this process when the process that started it dies, however it died, so
that no service outlives `headrace up`. Linux only; elsewhere only an orderly stop ends the children.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Asks for SIGTERM at the parent's death; ends at once if the parent is already gone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        # It may have died before the call above.
        if os.getppid() != parent_pid:
            sys.exit(1)


def main() -> None:
    """Runs the named module as `__main__`."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    end_with_parent(parent_pid)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
