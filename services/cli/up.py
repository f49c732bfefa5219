"""`headrace up`: every service on this machine, until Ctrl-C."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.cli import terminal
from services.errors import BackendUnavailable
from services.settings import Settings, load_settings
from services.state_folder import require_writable


def banner(settings: Settings, *, has_release: bool = True) -> Text:
    """Where everything is, one line each, and what to do next."""
    endpoints = settings.endpoints
    metrics_port = endpoints.metrics_port("gateway")
    rows = (
        ("gRPC", f"{endpoints.address('gateway')}   (health and reflection are on)"),
        ("console", f"http://{endpoints.host}:{endpoints.port('console')}/"),
        (
            "metrics",
            f"http://{endpoints.host}:{metrics_port}/metrics   "
            f"(each service: its port + {endpoints.metrics_offset})",
        ),
        ("broker", settings.broker.bootstrap_servers),
        ("state", str(settings.store.root.absolute())),
    )
    text = Text()
    for name, value in rows:
        text.append(f"{name:8} ", style="bold")
        text.append(f"{value}\n")
    if not has_release:
        text.append(_FIRST_STEPS)
    return text.append("Ctrl-C stops everything.")


_FIRST_STEPS = """
No release yet: popular items are answered. In a second shell:
  headrace replay --data DIR --from 0 --until 0.7   items and events into the topics
  headrace train --from-topic                       the first release

"""


_PID_FILE = "up.pid"
# Streams and watches of the default limits, and what a service opens itself.
_FEW_FILES = 2_200


def wants_embedded_broker(settings: Settings) -> bool:
    """Whether no broker was named: then `up` brings its own."""
    return settings.broker.bootstrap_servers == settings.embedded_bootstrap


def up(
    embedded_broker: Annotated[
        bool | None,
        typer.Option(
            help="Start the embedded broker, or use the one at HEADRACE_BROKER__BOOTSTRAP_SERVERS. "
            "By default: embedded, unless that variable names another."
        ),
    ] = None,
) -> None:
    """Start the broker and all services, and keep them until Ctrl-C."""
    import asyncio

    from rich.panel import Panel

    from services.rpc.descriptors import raise_limit
    from services.stack.ports import wait_for_orphans
    from services.stack.supervisor import Stack, run_stack

    settings = load_settings()
    refuse_beside_another(settings)
    require_writable(settings.store.root)
    if (limit := raise_limit()) < _FEW_FILES:
        terminal.warn(
            f"each service may open {limit:,} files and connections at most, fewer than its streams and "
            "calls need: raise the limit (`ulimit -Hn`)"
        )
    embedded = wants_embedded_broker(settings) if embedded_broker is None else embedded_broker
    stack = Stack(settings, embedded_broker=embedded)

    with pid_file(settings.store.root / _PID_FILE) as killed_pid, terminal.progress_bars() as bars:
        if killed_pid:
            terminal.warn(f"headrace up (pid {killed_pid}) was killed here: waiting for its services to end")
            wait_for_orphans(settings, embedded_broker=embedded)

        def started() -> None:
            bars.stop()
            text = banner(settings, has_release=stack.has_release)
            title = (
                f"headrace is up, without {', '.join(stack.degraded)}" if stack.degraded else "headrace is up"
            )
            terminal.out.print(Panel(text, title=title, expand=False), highlight=False)

        asyncio.run(run_stack(stack, bars, started, terminal.warn))
        terminal.note("headrace has stopped")


def refuse_beside_another(settings: Settings) -> None:
    """Raises BackendUnavailable if the services of another folder answer at these settings' ports."""
    from services.rpc.state import find_state

    found = find_state(settings)
    if found.answered_by and found.settings.store.root.resolve() != settings.store.root.resolve():
        raise BackendUnavailable(
            f"headrace runs already: {found.answered_by} keeps its state in {found.settings.store.root}. "
            "Stop it there, or give this folder ports of its own with HEADRACE_ENDPOINTS__BASE_PORT"
        )


@contextmanager
def pid_file(path: Path) -> Iterator[str]:
    """This process's id in `path` while the block runs: `make down` sends SIGTERM there.

    Gives the id that a killed process left in it, empty where there is none.

    Raises BackendUnavailable, and touches nothing, if another process holds the file. The kernel lets go of
    it with the process, so a killed one leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", errors="replace") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise BackendUnavailable(
                f"headrace is already running here (pid {handle.read().strip() or 'unknown'}); `make down` "
                "or `kill` with that pid stops it. For a second one, use another folder and another "
                "HEADRACE_ENDPOINTS__BASE_PORT"
            ) from error
        handle.seek(0)
        killed_pid = handle.read().strip()
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        try:
            yield killed_pid
        finally:
            path.unlink(missing_ok=True)


def running_up(root: Path) -> int | None:
    """The process id of the `headrace up` at work on a state folder; None if there is none."""
    try:
        with (root / _PID_FILE).open() as handle:
            try:
                # shared and released at once, so that two callers do not take each other for an `up`
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(handle.read().strip() or 0) or None
    except (OSError, ValueError):
        pass
    return None
