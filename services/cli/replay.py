"""`headrace replay`: a data folder's events into the running stream, in time order."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli import calls, terminal
from services.errors import BackendUnavailable
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from protos.headrace.v1.items_pb2 import Item
    from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceStub
    from services.cli.terminal import Stages
    from streaming.dataset import Dataset
    from streaming.producer import Producer

T = TypeVar("T")

_CHUNK_ITEMS = 500
_PATIENCE_S = 60.0
_POLL_INTERVAL_S = 0.2


def replay(
    data: Annotated[Path, typer.Option(help="A data folder.", exists=True, file_okay=False)],
    start: Annotated[float, typer.Option("--from", help="Share of the events to skip.", min=0, max=1)] = 0.7,
    until: Annotated[float, typer.Option(help="Share of the events at which to end.", min=0, max=1)] = 1.0,
    rate: Annotated[float, typer.Option(help="Events per second; 0 is as fast as it goes.", min=0)] = 0.0,
    keep_times: Annotated[
        bool,
        typer.Option("--keep-times", help="Send the times of the data, not moved so that it ends now."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Announce the items, wait for their semantic IDs, then send the events in time order.

    Everything goes straight to the topics, as any Kafka client may write them. Before the first release
    there is no codebook, and nothing to wait for. Times are moved together so that the whole data ends
    now: beside what happens today, events that are years old would count for nothing.
    """
    if until <= start:
        raise typer.BadParameter("--until must be greater than --from")
    from streaming.dataset import load_dataset
    from streaming.producer import Producer
    from streaming.replay import replay as send_events

    settings = load_settings()
    dataset = load_dataset(data)
    if not keep_times:
        dataset = dataset.ending_at(time.time_ns() // 1_000_000)
    started = time.monotonic()
    with Producer(settings.broker.bootstrap_servers) as producer, terminal.progress_bars() as bars:
        items = items_between(dataset, *dataset.bounds(start, until))
        num_announced = announce(settings, producer, items, bars)
        begin, end = dataset.bounds(start, until)
        num_events = send_events(
            dataset,
            producer,
            start=start,
            end=until,
            events_per_s=rate or None,
            known_items={item.item_id for item in items},
            on_progress=lambda done: bars("events sent", done, end - begin),
        )
    seconds = round(time.monotonic() - started, 1)
    if json:
        terminal.print_json({"num_items": num_announced, "num_events": num_events, "seconds": seconds})
    else:
        terminal.out.print(
            f"{num_announced:,} items and {num_events:,} events in {seconds} s", highlight=False
        )


def items_between(dataset: "Dataset", begin: int, end: int) -> "list[Item]":
    """The items of events [begin, end), each announced at the time of its first event in the whole data."""
    first_ms: dict[str, int] = {}
    for item_id, time_ms in zip(dataset.item_id_N, dataset.time_ms_N.tolist(), strict=True):
        first_ms.setdefault(item_id, time_ms)
    wanted = set(dataset.item_id_N[begin:end])
    items = [item for item in dataset.items if item.item_id in wanted]
    for item in items:
        item.announced_time_ms = first_ms[item.item_id]
    return items


def announce(settings: Settings, producer: "Producer", items: "Sequence[Item]", bars: "Stages") -> int:
    """Writes the items that have no semantic ID yet to their topic, waits until they have, counts them.

    Events on an item without one would wait at the learner, and end as dead letters. Raises
    BackendUnavailable when the tokenizer makes no progress.
    """
    from streaming.topics import ITEMS

    if not has_live_release(settings):
        _send(producer, ITEMS, items, bars)
        return len(items)
    with calls.tokenizer(settings) as stub:
        missing = set(_without_sid(stub, [item.item_id for item in items]))
        _send(producer, ITEMS, [item for item in items if item.item_id in missing], bars)
        _wait_for_sids(stub, missing, bars)
    return len(missing)


def has_live_release(settings: Settings) -> bool:
    """Whether there is a codebook to make semantic IDs with."""
    from services.learner.releases import live_release
    from services.release import ReleasePublisher

    return live_release(ReleasePublisher(settings).list()) is not None


def _send(producer: "Producer", topic: str, items: "Sequence[Item]", bars: "Stages") -> None:
    for done, part in _parts(items):
        for item in part:
            producer.send(topic, item.item_id, item)
        producer.flush()
        bars("items announced", done, len(items))


def _wait_for_sids(stub: "TokenizerServiceStub", item_ids: "set[str]", bars: "Stages") -> None:
    missing = sorted(item_ids)
    changed = time.monotonic()
    while missing:
        still = _without_sid(stub, missing)
        if len(still) < len(missing):
            changed = time.monotonic()
        missing = still
        bars("semantic IDs made", len(item_ids) - len(missing), len(item_ids))
        if missing and time.monotonic() - changed > _PATIENCE_S:
            raise BackendUnavailable(
                f"no semantic ID came in {_PATIENCE_S:.0f} s; {len(missing)} items lack one, "
                f"{missing[0]!r} for one: see `headrace dlq list items`"
            )
        time.sleep(_POLL_INTERVAL_S if missing else 0)


def _without_sid(stub: "TokenizerServiceStub", item_ids: Sequence[str]) -> list[str]:
    from protos.headrace.v1.tokenizer_pb2 import TokenizeRequest

    missing: list[str] = []
    for _, part in _parts(item_ids):
        sids = stub.Tokenize(TokenizeRequest(item_ids=part), timeout=calls.CALL_TIMEOUT_S).sids
        missing += [item_id for item_id in part if item_id not in sids]
    return missing


def _parts(things: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    for first in range(0, len(things), _CHUNK_ITEMS):
        part = things[first : first + _CHUNK_ITEMS]
        yield first + len(part), part
