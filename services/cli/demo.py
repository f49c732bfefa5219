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
    from services.demo.findings import Findings
    from services.stack.supervisor import Stack
    from streaming.datasets.folder import Dataset

_OFFLINE_SHARE = 0.7
# what a shell gives a command that SIGTERM ended
_TERMINATED = 128 + 15
_RELEASES_DURING_REPLAY = 8
# How long the modest first release is trained: it is on the screen within a minute of the start.
_MODEST_S = 15.0


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="A data folder; by default MovieLens 100K.", exists=True, file_okay=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    train_minutes: Annotated[
        float, typer.Option(help="Time for the whole training, modest first release included.", min=0.1)
    ] = 2.75,
) -> None:
    """Learn a modest release from 70% of the data in a minute, then a better one; replay the rest live."""
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

    from services.demo.findings import promises_panel
    from services.stack.supervisor import Stack

    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    started = time.monotonic()
    stack = Stack(settings)
    try:
        findings = await _take_tour(settings, dataset, stack, started, train_s)
        terminal.out.print(promises_panel(findings, time.monotonic() - started))
        if not once:
            terminal.out.print(f"the console is at {_console_url(settings)}; Ctrl-C stops everything")
            await asyncio.Event().wait()
        return not findings.broken
    finally:
        await stack.stop()


async def _take_tour(
    settings: Settings, dataset: "Dataset", stack: "Stack", started: float, train_s: float
) -> "Findings":
    """The stack up, the first 70% in the topics, a modest release live, and from there on the tour; the
    whole training goes on beside its first half."""
    import asyncio

    from services.demo.tour import Tour
    from services.demo.training import running_training

    _, begin = dataset.bounds(0.0, _OFFLINE_SHARE)
    with terminal.progress_bars() as bars:
        await stack.start(bars, terminal.warn)
        announced = await asyncio.to_thread(_send_past, settings, dataset, bars)
    tour = Tour(settings=settings, dataset=dataset, begin=begin, console=terminal.out, announced=announced)
    async with running_training(settings, modest_s=_MODEST_S, whole_s=train_s) as training:
        with terminal.progress_bars() as bars:
            modest = await training.next_release(bars)
            await stack.wait_ready(bars)
        async with tour.calls():
            await tour.show_first_answer(modest, started)
            terminal.out.print(Panel(banner(settings), title="headrace is up", expand=False), highlight=False)
            await tour.show_moments()
            terminal.out.rule("the whole training, beside what is served")
            with terminal.progress_bars() as bars:
                whole = await training.next_release(bars)
            await tour.show_whole_training(modest, whole)
            await tour.show_replay()
    return tour.findings


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


def _console_url(settings: Settings) -> str:
    return f"http://{settings.endpoints.host}:{settings.endpoints.port('console')}/"
