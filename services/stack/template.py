"""`python -m services.stack.template`: a process that has imported everything, and forks the services off.

Importing torch and the rest takes each process seconds and over a hundred megabytes that never change. Here
it is done once: a fork begins in milliseconds and shares those pages with all others. Nothing may run here
that does not survive a fork (threads, event loops, gRPC), so this process does nothing else.

It reads one JSON object a line from standard input, {"name", "module", "environment", "log"}, and answers
{"started": pid}; when a fork ends it says {"ended": pid, "code": its exit code}. It ends when its input does,
and its forks end with it.
"""

import gc
import importlib
import json
import os
import selectors
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from models.compilation.precompile import precompile
from services.environment import PREFIX
from services.stack.children import MODULES
from services.stack.launch import end_with_parent, name_process

_INPUT, _OUTPUT, _ERRORS = range(3)


def main() -> None:
    """Serves until the input ends; in a fork, runs its module."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork; each service makes its own
    for module in MODULES.values():
        importlib.import_module(module)
    with _without_onednn():
        precompile()
    gc.collect()
    gc.freeze()
    template_pid = os.getpid()
    for request in _requests():
        pid = os.fork()
        if pid == 0:
            _become(request, template_pid)
            importlib.import_module(request["module"]).main()
            return
        _say({"started": pid})


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN reads at its first product how much it may keep: that is for each fork to say."""
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)  # type: ignore[no-untyped-call]


def _requests() -> Iterator[Mapping[str, Any]]:
    """What is asked for, until the input ends; meanwhile says which forks have ended."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(_INPUT, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                _report_ended()
            if _INPUT in ready:
                data = os.read(_INPUT, 1 << 16)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                yield from map(json.loads, lines)


def _become(request: Mapping[str, Any], template_pid: int) -> None:
    """Gives a fork a session, an environment and files of its own, and an end with the template's."""
    os.setsid()  # Ctrl-C reaches the supervisor alone
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    os.environ.update(request["environment"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(nothing, _INPUT)
    os.dup2(log, _OUTPUT)
    os.dup2(log, _ERRORS)
    os.close(nothing)
    os.close(log)
    name_process(request["name"])
    end_with_parent(template_pid)


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message: Mapping[str, Any]) -> None:
    os.write(_OUTPUT, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
