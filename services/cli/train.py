"""`headrace train`: a release learned offline, from a data folder or from the topics."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import calls, terminal
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from models.progress import Progress
    from protos.headrace.v1.events_pb2 import Event
    from protos.headrace.v1.items_pb2 import Item
    from protos.headrace.v1.release_pb2 import Release
    from services.learner.cold_start.train import FirstRelease
    from streaming.clients.consumer import PartitionConsumer
    from streaming.messages.records import Record

_BATCH_RECORDS = 1_000
_LEARNER_PATIENCE_S = 60.0
_LEARNER_POLL_S = 0.2


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
        float, typer.Option(help="End the whole training by about then; 0: no limit.", min=0)
    ] = 0.0,
    modest_seconds: Annotated[
        float,
        typer.Option(
            help="First a release of so short a training, the whole one after it; 0: the whole one alone.",
            min=0,
        ),
    ] = 0.0,
    keep_times: terminal.KeepTimesOption = False,
    columns: terminal.ColumnsOption = None,
    allow_unmatched: terminal.UnmatchedOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print progress and releases as JSON, one object a line.")
    ] = False,
) -> None:
    """Learn a release from a data folder, or from the topics, and make it live.

    Needs the broker (`headrace up`). Runs beside the services, which go on; a running learner takes the new
    release over and goes on from there, as the next one does that starts. With --data the folder's items are
    announced, and the learner reads the topics from their beginning: the events that were learned here it
    recognises by their ids. Interrupted or killed, a training leaves live what was live.
    """
    if (data is None) != from_topic:
        raise typer.BadParameter("give either --data FOLDER or --from-topic")
    _check_finite(max_minutes, until, modest_seconds)
    from services.cores import use_cores, wait_asleep

    wait_asleep()
    from services.learner.cold_start.deadline import Deadline
    from services.learner.cold_start.preflight import check_folder_of_data, check_training
    from services.rpc.state import find_state
    from streaming.datasets.tables import parse_columns

    deadline = Deadline(max_minutes * 60 or None)
    columns_of = parse_columns(columns)
    state = find_state(load_settings())
    settings = state.settings
    check_training(settings, from_topic=from_topic)
    if data is not None:
        check_folder_of_data(data)
    terminal.note(f"state: {settings.store.root} ({state.answered_by or 'no service answers'})")

    from services.learner.cold_start.train import Modest, train_first_release
    from services.memory import give_back, keep_few_products, return_large_at_once

    use_cores()
    keep_few_products()
    return_large_at_once()
    with terminal.json_lines() if json_lines else terminal.progress_bars() as bars:
        offsets: dict[str, int] = {}
        if data is not None:
            items, events = read_folder(data, until, keep_times, columns_of, allow_unmatched=allow_unmatched)
        else:
            items, events, offsets = read_topics(settings, bars)
        modest = None
        if modest_seconds:
            modest = Modest(
                max_seconds=modest_seconds,
                went_live=partial(_say_modest, json_lines=json_lines),
                progress=lambda stage, *report: bars(f"first {stage}", *report),
            )
        give_back()
        first = train_first_release(
            settings,
            items,
            events,
            offsets=offsets,
            progress=bars,
            deadline=deadline,
            modest=modest,
        )
    if json_lines:
        _warn_of(first)
        terminal.print_json_line({"release": terminal.message_dict(first.release)})
        return
    _report(first, json)
    if data is not None:
        flags = {"--keep-times": keep_times, "--allow-unmatched": allow_unmatched}
        _advise_replay(data, {"--until": until if until < 1.0 else None, "--columns": columns}, flags)
    _wait_for_learner(settings, first.release.release_id)


def _check_finite(max_minutes: float, until: float, modest_seconds: float) -> None:
    """Raises BadParameter for what Typer's bounds let pass: NaN, and times without end."""
    if not all(map(math.isfinite, (max_minutes, until, modest_seconds))):
        raise typer.BadParameter("--max-minutes, --until and --modest-seconds must be numbers")


def _advise_replay(data: Path, options: Mapping[str, object], flags: Mapping[str, bool]) -> None:
    """Says by which command the very events of a training reach the services, too."""
    words = ["headrace", "replay", "--data", str(data), "--from", "0"]
    words += [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    words += [name for name, is_set in flags.items() if is_set]
    terminal.note(
        "unless these events were sent before, only the model knows them: "
        f"`{shlex.join([*words, '--allow-known'])}` gives their users histories, and everybody popularity"
    )


def _say_modest(release: "Release", *, json_lines: bool) -> None:
    if json_lines:
        terminal.print_json_line({"release": terminal.message_dict(release)})
    else:
        terminal.note(f"a modest release is live meanwhile: {release.release_id}")


def _warn_of(first: "FirstRelease") -> None:
    """What of the data is not in the release, and what is odd about it."""
    for note in first.notes:
        terminal.warn(note)
    if first.num_unmatched:
        terminal.warn(f"{first.num_unmatched:,} events left out: their items have no line or no content")
    if first.num_repeated:
        terminal.warn(
            f"{first.num_repeated:,} events left out: their user had an event of the same id before"
        )


def _report(first: "FirstRelease", json: bool) -> None:
    _warn_of(first)
    if json:
        terminal.print_json(terminal.message_dict(first.release))
        return
    terminal.out.print(
        f"release {first.release.release_id} is live: {first.num_learned:,} events, "
        f"{len(first.bundle.catalogue):,} items",
        highlight=False,
    )
    metrics = first.bundle.meta.metrics
    if metrics:
        ours = {name: metrics[name] for name in ("recall@10", "ndcg@10") if name in metrics}
        popularity = {"recall@10": metrics["popularity_recall@10"]}
        terminal.print_metrics("held-out events", {"this release": ours, "popularity": popularity})
    else:
        terminal.note(
            "nothing was measured: the newest events are first ones of users, or on items had before"
        )


def _wait_for_learner(settings: Settings, release_id: str) -> None:
    """Reports when a running learner continues from the release; if none runs, the next to start will."""
    import grpc

    from protos.headrace.v1.learner_pb2 import StatusRequest
    from services.errors import BackendUnavailable

    deadline_s = time.monotonic() + _LEARNER_PATIENCE_S
    try:
        with calls.learner(settings) as stub:
            while time.monotonic() < deadline_s:
                status = stub.Status(StatusRequest(), timeout=calls.CALL_TIMEOUT_S)
                if status.live_release_id == release_id:
                    terminal.note("the running learner goes on from it")
                    return
                time.sleep(_LEARNER_POLL_S)
            terminal.warn(f"the learner has not taken it over yet: {status.problem or status.state}")
    except (BackendUnavailable, grpc.RpcError):
        terminal.note("no learner answers; the next one to start goes on from it")


def read_folder(
    data: Path,
    until: float,
    keep_times: bool,
    columns_of: "Mapping[str, str] | None" = None,
    *,
    allow_unmatched: bool = False,
) -> "tuple[Sequence[Item], list[Event]]":
    """The items and the first share of the events of a data folder, moved to end now unless `keep_times`.

    Items as `headrace replay` announces them: those that come later in the data are not there yet.
    """
    from services.cli.replay import items_until
    from streaming.datasets.folder import load_dataset

    dataset = load_dataset(data, columns_of, allow_unmatched=allow_unmatched)
    if not keep_times:
        dataset = dataset.ending_at(time.time_ns() // 1_000_000)
    if dataset.num_unmatched:
        terminal.note(f"{dataset.num_unmatched:,} events of the folder are on items without a line")
    _, end = dataset.bounds(0.0, until)
    return items_until(dataset, end), [dataset.event(n) for n in range(end)]


def read_topics(settings: Settings, bars: "Progress") -> "tuple[list[Item], list[Event], dict[str, int]]":
    """Everything in `items` and `interactions`, and the offsets of what was read of the latter."""
    from streaming.clients.consumer import PartitionConsumer
    from streaming.messages.topics import INTERACTIONS, ITEMS

    bootstrap = settings.broker.bootstrap_servers
    items: dict[str, Item] = {}
    # malformed records are passed over: the services reject them, and one record is one letter
    with PartitionConsumer(
        bootstrap, [ITEMS], offsets={}, dead_letters=None, stage="train", with_tombstones=True
    ) as consumer:
        for record in _records(consumer, "read items", bars):
            if record.message is None:
                items.pop(record.key, None)
            else:
                items[record.message.item_id] = record.message
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets={}, dead_letters=None, stage="train"
    ) as consumer:
        events = [record.message for record in _records(consumer, "read events", bars)]
        offsets = consumer.offsets
    return list(items.values()), events, offsets


def _records(consumer: "PartitionConsumer", stage: str, bars: "Progress") -> "list[Record]":
    """All records; the bar counts offsets, since not every offset is a record (and not all begin at 0)."""
    from streaming.clients.consumer import describe_hidden
    from streaming.datasets.replay import replay_topic

    consumer.lag()
    if stalled := describe_hidden(consumer.hidden()):
        terminal.warn(f"{stalled}, and are not learned here")
    ends = consumer.end_offsets()
    total = left = sum(max(0, end - consumer.offsets[position]) for position, end in ends.items())
    bars(stage, 0, total)
    found: list[Record] = []
    for records in replay_topic(consumer, batch_size=_BATCH_RECORDS):
        found += records
        left = sum(max(0, end - consumer.offsets[position]) for position, end in ends.items())
        bars(stage, total - left, total)
    bars(stage, total, total)
    return found
