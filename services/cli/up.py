"""`headrace up`: every service on this machine, until Ctrl-C."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from services.cli import terminal
from services.settings import BrokerSettings, Settings, load_settings


def banner(settings: Settings) -> str:
    """Where everything is, one line each."""
    endpoints = settings.endpoints
    lines = [
        f"[bold]gRPC[/bold]     {endpoints.address('gateway')}   (health and reflection are on)",
        f"[bold]console[/bold]  http://{endpoints.host}:{endpoints.console}/",
        f"[bold]metrics[/bold]  http://{endpoints.host}:{endpoints.metrics_port('gateway')}/metrics   "
        f"(each service: its port + {endpoints.metrics_offset})",
        f"[bold]broker[/bold]   {settings.broker.bootstrap_servers}",
        f"[bold]logs[/bold]     {settings.store.root / 'logs'}",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def wants_embedded_broker(settings: Settings) -> bool:
    """Whether no broker was named: then `up` brings its own."""
    return settings.broker.bootstrap_servers == BrokerSettings().bootstrap_servers


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

    from services.up import ChildDied, Stack, run_stack

    settings = load_settings()
    embedded = wants_embedded_broker(settings) if embedded_broker is None else embedded_broker
    stack = Stack(settings, embedded_broker=embedded)

    with terminal.progress_bars() as bars:

        def started() -> None:
            bars.stop()
            terminal.out.print(Panel(banner(settings), title="headrace is up", expand=False), highlight=False)

        try:
            with pid_file(settings.store.root / "up.pid"):
                asyncio.run(run_stack(stack, bars, started, terminal.warn))
        except ChildDied as error:
            bars.stop()
            terminal.err.print(error.child.log_tail(), highlight=False, markup=False, soft_wrap=True)
            raise


@contextmanager
def pid_file(path: Path) -> Iterator[None]:
    """This process's id in `path` while the block runs: `make down` sends SIGTERM there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
