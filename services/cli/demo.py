"""`headrace demo`: sets up the whole river on real data, takes the tour, and stays up to play with."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel

from services.cli import terminal
from services.cli.up import banner
from services.settings import Settings, load_settings
from services.state_folder import require_writable

if TYPE_CHECKING:
    from services.cli.terminal import Stages
    from services.stack.supervisor import Stack
    from streaming.datasets.folder import Dataset

_OFFLINE_SHARE = 0.7
# what a shell gives a command that SIGTERM ended
_TERMINATED = 128 + 15
_RELEASES_DURING_REPLAY = 4


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="A data folder; by default MovieLens 100K.", exists=True, file_okay=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    train_minutes: Annotated[
        float, typer.Option(help="Time for the training of the first release.", min=0.1)
    ] = 2.5,
) -> None:
    """Learn a first release from 70% of the data, replay the rest live, and show what happens."""
    import asyncio

    settings = load_settings()
    require_writable(settings.store.root)
    dataset = _load(settings, data)
    settings = _demo_settings(settings, dataset)
    # the demo starts from nothing, in a folder of its own
    shutil.rmtree(settings.store.root, ignore_errors=True)
    try:
        kept = asyncio.run(_run(settings, dataset, once=once, train_s=train_minutes * 60))
    except asyncio.CancelledError:
        raise typer.Exit(_TERMINATED) from None
    if not kept:
        raise typer.Exit(1)


def _load(settings: Settings, data: Path | None) -> "Dataset":
    from streaming.datasets.folder import load_dataset
    from streaming.datasets.movielens import download_movielens

    if data is None:
        with terminal.err.status("MovieLens 100K"):
            data = download_movielens(settings.store.root / "data")
    dataset = load_dataset(data).ending_at(time.time_ns() // 1_000_000)
    terminal.out.print(
        f"{dataset.name}: {len(set(dataset.user_id_N)):,} users, {len(dataset.items):,} items, "
        f"{len(dataset):,} events",
        highlight=False,
    )
    return dataset


def _demo_settings(settings: Settings, dataset: "Dataset") -> Settings:
    """The given settings with a store of the demo's own, and releases often enough to see some."""
    num_live = len(dataset) - dataset.bounds(0.0, _OFFLINE_SHARE)[1]
    store = replace(settings.store, root=settings.store.root / "demo")
    learner = replace(
        settings.learner_service, release_interval_events=max(500, num_live // _RELEASES_DURING_REPLAY)
    )
    return settings.model_copy(update={"store": store, "learner_service": learner})


async def _run(settings: Settings, dataset: "Dataset", *, once: bool, train_s: float) -> bool:
    """Whether every promise was kept; stops every child whatever happens, also on SIGTERM."""
    import asyncio
    import signal

    from services.demo.tour import Tour, promises_panel
    from services.stack.supervisor import Stack

    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    started = time.monotonic()
    _, begin = dataset.bounds(0.0, _OFFLINE_SHARE)
    stack = Stack(settings)
    try:
        announced = await _prepare(settings, dataset, stack, train_s)
        terminal.out.print(Panel(banner(settings), title="headrace is up", expand=False), highlight=False)
        tour = Tour(
            settings=settings, dataset=dataset, begin=begin, console=terminal.out, announced=announced
        )
        findings = await tour.run()
        terminal.out.print(promises_panel(findings, time.monotonic() - started))
        if not once:
            terminal.out.print(f"the console is at {_console_url(settings)}; Ctrl-C stops everything")
            await asyncio.Event().wait()
        return not findings.broken
    finally:
        await stack.stop()


async def _prepare(settings: Settings, dataset: "Dataset", stack: "Stack", train_s: float) -> set[str]:
    """Stack up, the first 70% in the topics, the first release live and warm; the items announced."""
    import asyncio

    with terminal.progress_bars() as bars:
        await stack.start(bars, terminal.warn)
        announced = await asyncio.to_thread(_send_past, settings, dataset, bars)
    await _train(settings, train_s)
    with terminal.progress_bars() as bars:
        await stack.wait_ready(bars)
    return announced


def _send_past(settings: Settings, dataset: "Dataset", bars: "Stages") -> set[str]:
    from streaming.clients.producer import Producer
    from streaming.datasets.replay import replay

    _, begin = dataset.bounds(0.0, _OFFLINE_SHARE)
    with Producer(settings.broker.bootstrap_servers) as producer:
        replay(
            dataset,
            producer,
            end=_OFFLINE_SHARE,
            on_progress=lambda done: bars("the past into the topics", done, begin),
        )
    return set(dataset.item_id_N[:begin])


async def _train(settings: Settings, train_s: float) -> None:
    """`headrace train --from-topic` as a child: Ctrl-C ends it at once, whatever it computes."""
    import asyncio
    import os
    import sys

    from services.errors import ServiceError
    from services.settings import to_environment

    command = ["-m", "services.cli.main", "train", "--from-topic", "--max-minutes", f"{train_s / 60:g}"]
    training = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.DEVNULL, env=os.environ | to_environment(settings)
    )
    try:
        if await training.wait():
            raise ServiceError("the training of the first release failed; see above")
    finally:
        if training.returncode is None:
            training.kill()
            await training.wait()


def _console_url(settings: Settings) -> str:
    return f"http://{settings.endpoints.host}:{settings.endpoints.port('console')}/"
