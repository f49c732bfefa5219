"""`headrace train`: the first release, learned offline."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import terminal
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from protos.headrace.v1.events_pb2 import Event
    from protos.headrace.v1.items_pb2 import Item
    from services.cli.terminal import Stages
    from streaming.consumer import PartitionConsumer

_BATCH_RECORDS = 1_000


def train(
    data: Annotated[
        Path | None, typer.Option(help="A data folder to learn from.", exists=True, file_okay=False)
    ] = None,
    until: Annotated[
        float, typer.Option(help="Share of the data's events to learn, in time order.", min=0.01, max=1)
    ] = 1.0,
    from_topic: Annotated[
        bool, typer.Option("--from-topic", help="Learn from the topics, from their beginning.")
    ] = False,
    max_minutes: Annotated[
        float, typer.Option(help="End the training of the recommender by then; 0: no limit.", min=0)
    ] = 0.0,
    keep_times: Annotated[
        bool,
        typer.Option("--keep-times", help="Keep the times of the data, not moved so that it ends now."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Learn the first release from a data folder, or from the topics, and make it live.

    The learner goes on from there. With --data it reads the topics from their beginning, and recognises
    the events that were learned here by their ids.
    """
    if (data is None) != from_topic:
        raise typer.BadParameter("give either --data FOLDER or --from-topic")
    import torch

    from services.cold_start import train_first_release

    settings = load_settings()
    torch.set_num_threads(os.cpu_count() or 1)  # the machine is this command's alone
    with terminal.progress_bars() as bars:
        if data is not None:
            items, events = read_folder(data, until, keep_times)
            offsets: dict[str, int] = {}
        else:
            items, events, offsets = read_topics(settings, bars)
        first = train_first_release(
            settings, items, events, offsets=offsets, progress=bars, max_seconds=max_minutes * 60 or None
        )
    if json:
        terminal.print_json(terminal.message_dict(first.release))
        return
    terminal.out.print(
        f"release {first.release.release_id} is live: {first.num_learned:,} events, "
        f"{len(first.bundle.catalogue):,} items",
        highlight=False,
    )
    if first.num_left_out:
        terminal.err.print(
            f"[yellow]{first.num_left_out:,} events left out[/]: unknown items, or ids that came before"
        )
    terminal.print_metrics("held-out events", {"recommend": first.bundle.meta.metrics})


def read_folder(data: Path, until: float, keep_times: bool) -> "tuple[Sequence[Item], list[Event]]":
    """The items and the first share of the events of a data folder, moved to end now unless `keep_times`.

    Only items that had an event by then: the others were not there yet, as far as one can know.
    """
    from streaming.dataset import load_dataset

    dataset = load_dataset(data)
    if not keep_times:
        dataset = dataset.ending_at(time.time_ns() // 1_000_000)
    _, end = dataset.bounds(0.0, until)
    first_ms: dict[str, int] = {}
    for item_id, time_ms in zip(dataset.item_id_N[:end], dataset.time_ms_N[:end].tolist(), strict=True):
        first_ms.setdefault(item_id, time_ms)
    items = [item for item in dataset.items if item.item_id in first_ms]
    for item in items:
        item.announced_time_ms = first_ms[item.item_id]
    return items, [dataset.event(n) for n in range(end)]


def read_topics(settings: Settings, bars: "Stages") -> "tuple[list[Item], list[Event], dict[str, int]]":
    """Everything in `items` and `interactions`, and the offsets of what was read of the latter."""
    from streaming.consumer import PartitionConsumer
    from streaming.dead_letter import DeadLetters
    from streaming.topics import INTERACTIONS, ITEMS

    bootstrap = settings.broker.bootstrap_servers
    letters = DeadLetters(bootstrap, stage="train")
    items: dict[str, Item] = {}
    events: list[Event] = []
    with PartitionConsumer(bootstrap, [ITEMS], offsets={}, dead_letters=letters, stage="train") as consumer:
        for item in _messages(consumer, "read items", bars):
            items[item.item_id] = item
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets={}, dead_letters=letters, stage="train"
    ) as consumer:
        events = list(_messages(consumer, "read events", bars))
        offsets = consumer.offsets
    letters.close()
    return list(items.values()), events, offsets


def _messages(consumer: "PartitionConsumer", stage: str, bars: "Stages") -> "list[Any]":
    from streaming.replay import replay_topic

    total = sum(consumer.end_offsets().values())
    messages: list[Any] = []
    for records in replay_topic(consumer, batch_size=_BATCH_RECORDS):
        messages += [record.message for record in records]
        bars(stage, len(messages), total)
    return messages
