"""`headrace replay`: a data folder's events into the running stream, in time order."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli import calls, terminal
from services.errors import BackendUnavailable, ServiceError
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from protos.headrace.v1.items_pb2 import Item
    from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceStub
    from services.cli.terminal import Stages
    from streaming.clients.producer import Producer
    from streaming.datasets.folder import Dataset

T = TypeVar("T")

_CHUNK_ITEMS = 500
_PATIENCE_S = 60.0
_POLL_INTERVAL_S = 0.2
_READING_PATIENCE_S = 30.0
# Beyond such a share of events that were known, this data was sent before.
_MAX_KNOWN_SHARE = 0.5


def replay(
    data: Annotated[Path, typer.Option(help="A data folder.", exists=True, file_okay=False)],
    start: Annotated[float, typer.Option("--from", help="Share of the events to skip.", min=0, max=1)] = 0.7,
    until: Annotated[float, typer.Option(help="Share of the events at which to end.", min=0, max=1)] = 1.0,
    rate: Annotated[float, typer.Option(help="Events per second; 0 is as fast as it goes.", min=0)] = 0.0,
    keep_times: terminal.KeepTimesOption = False,
    columns: terminal.ColumnsOption = None,
    allow_unmatched: terminal.UnmatchedOption = False,
    allow_known: Annotated[
        bool,
        typer.Option("--allow-known", help="No error where most of the events were known already."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Announce the items, wait for their semantic IDs, then send the events in time order.

    Everything goes straight to the topics, as any Kafka client may write them. Announces every item that
    existed by then: a day before its first event, and one without an event from the start. Before the first
    release there is no codebook, and nothing to wait for. Times are moved together so that the whole
    data ends now: beside what happens today, events that are years old would count for nothing. Ends by
    saying what the learner made of the events.
    """
    if until <= start:
        raise typer.BadParameter("--until must be greater than --from")
    from services.rpc.state import find_state
    from streaming.clients.producer import Producer
    from streaming.datasets.folder import load_dataset
    from streaming.datasets.replay import replay as send_events
    from streaming.datasets.tables import parse_columns

    settings = find_state(load_settings()).settings
    dataset = load_dataset(data, parse_columns(columns), allow_unmatched=allow_unmatched)
    if not keep_times:
        dataset = dataset.ending_at(time.time_ns() // 1_000_000)
    check_events(dataset)
    check_widths(settings, dataset)
    started = time.monotonic()
    with Producer(settings.broker.bootstrap_servers) as producer, terminal.progress_bars() as bars:
        before = wait_idle(settings, bars)
        begin, end = dataset.bounds(start, until)
        items = items_until(dataset, end)
        num_announced = announce(settings, producer, items, bars)
        num_events = send_events(
            dataset,
            producer,
            start=start,
            end=until,
            events_per_s=rate or None,
            known_items={item.item_id for item in items},
            on_progress=lambda done: bars("events sent", done, end - begin),
        )
        taken = None if before is None else wait_taken(settings, before, num_events, bars)
    seconds = round(time.monotonic() - started, 1)
    _report(dataset, num_announced, num_events, taken, seconds, json=json)
    if taken is None:
        if not json:
            terminal.note(_why_unread(settings))
    else:
        _compare(settings, taken, num_events, allow_known=allow_known)


@dataclass(frozen=True)
class Taken:
    """What a learner has made of events: learned, known already, refused (dead letters)."""

    num_learned: int
    num_known: int
    num_refused: int

    @classmethod
    def now(cls, settings: Settings) -> "Taken | None":
        """The learner's counts since it started; None if none is learning."""
        from protos.headrace.v1.learner_pb2 import StatusRequest

        try:
            with calls.learner(settings) as stub:
                status = stub.Status(StatusRequest(), timeout=calls.CALL_TIMEOUT_S)
        except ServiceError:
            return None
        if status.state != "learning":
            return None
        return cls(status.num_events_learned, status.num_events_duplicate, status.num_events_dead_lettered)

    def since(self, before: "Taken") -> "Taken":
        """The events taken since `before`."""
        return Taken(
            self.num_learned - before.num_learned,
            self.num_known - before.num_known,
            self.num_refused - before.num_refused,
        )

    @property
    def total(self) -> int:
        """Events read."""
        return self.num_learned + self.num_known + self.num_refused


def wait_idle(settings: Settings, bars: "Stages") -> Taken | None:
    """The learner's counts once it has read what was sent before; None if no learner learns.

    Otherwise events of others, such as those it reads after taking over a training, would count among ours.
    Waits only for a while: traffic may never end.
    """
    from protos.headrace.v1.learner_pb2 import StatusRequest

    until_s, most = time.monotonic() + _READING_PATIENCE_S, 0
    try:
        with calls.learner(settings) as stub:
            while time.monotonic() < until_s:
                status = stub.Status(StatusRequest(), timeout=calls.CALL_TIMEOUT_S)
                most = max(most, status.lag_records)
                if status.state != "learning" or not status.lag_records:
                    break
                bars("events read of before", most - status.lag_records, most)
                time.sleep(_POLL_INTERVAL_S)
    except ServiceError:
        return None
    return Taken.now(settings)


def stalled_stream(settings: Settings) -> str:
    """The learner's word on records that it cannot reach; empty if there are none, or no learner answers."""
    from protos.headrace.v1.learner_pb2 import StatusRequest

    try:
        with calls.learner(settings) as stub:
            return stub.Status(StatusRequest(), timeout=calls.CALL_TIMEOUT_S).stalled
    except ServiceError:
        return ""


def wait_taken(settings: Settings, before: Taken, num_events: int, bars: "Stages") -> Taken:
    """What the learner made of `num_events` events; less than all if it makes no progress for a while."""
    taken, changed_s = Taken(0, 0, 0), time.monotonic()
    while taken.total < num_events and time.monotonic() - changed_s < _READING_PATIENCE_S:
        now = Taken.now(settings)
        if now is not None and now.since(before).total != taken.total:
            taken, changed_s = now.since(before), time.monotonic()
        bars("events read by the learner", min(taken.total, num_events), num_events)
        time.sleep(_POLL_INTERVAL_S if taken.total < num_events else 0)
    return taken


def _report(
    dataset: "Dataset", num_items: int, num_events: int, taken: Taken | None, seconds: float, *, json: bool
) -> None:
    if json:
        made = None if taken is None else asdict(taken)
        terminal.print_json(
            {
                "num_items": num_items,
                "num_events": num_events,
                "num_unmatched": dataset.num_unmatched,
                "taken": made,
                "seconds": seconds,
            }
        )
        return
    terminal.out.print(f"{num_items:,} items and {num_events:,} events sent in {seconds} s", highlight=False)
    if dataset.num_unmatched:
        terminal.note(
            f"{dataset.num_unmatched:,} events of the folder are on items without a line (unmatched)"
        )
    if taken is None:
        return
    left = num_events - taken.total
    terminal.out.print(
        f"{taken.num_learned:,} learned, {taken.num_known:,} known already, {taken.num_refused:,} refused "
        "(`headrace dlq list interactions`)" + (f", {left:,} not read yet" if left > 0 else ""),
        highlight=False,
    )


def _compare(settings: Settings, taken: Taken, num_events: int, *, allow_known: bool) -> None:
    """Says where the learner took other events than were sent; raises Exit if most were not `allow_known`."""
    if taken.total < num_events and (stalled := stalled_stream(settings)):
        terminal.warn(stalled)
    if taken.total > num_events:
        others = taken.total - num_events
        terminal.note(f"{others:,} events of others came meanwhile, and are among these numbers")
    elif not allow_known and taken.num_known > _MAX_KNOWN_SHARE * num_events:
        terminal.warn(
            f"{taken.num_known:,} of {num_events:,} events were known already: was this data sent before, or "
            "learned by `headrace train --data`? (--allow-known makes this no error)"
        )
        raise typer.Exit(1)


def _why_unread(settings: Settings) -> str:
    """What to expect if no learner reads what was sent."""
    if has_live_release(settings):
        return "no learner is at work now; the next one to start reads them"
    return "no learner reads them yet; `headrace train --from-topic` makes the first release"


def check_events(dataset: "Dataset") -> None:
    """Raises DatasetError for the first event that readers would refuse, before anything is sent."""
    from streaming.errors import DatasetError
    from streaming.messages.events import validate_event

    now_ms = time.time_ns() // 1_000_000
    for n in range(len(dataset)):
        for field, problem in validate_event(dataset.event(n), now_ms=now_ms):
            raise DatasetError(f"row {int(dataset.row_N[n]) + 1} of {dataset.name}: {field} {problem}")


def check_widths(settings: Settings, dataset: "Dataset") -> None:
    """Raises DatasetError where the items' vectors are of another width than the live codebook's."""
    from models.errors import IncompatibleCheckpoint
    from services.releases.publisher import ReleasePublisher
    from services.releases.store import release_store
    from streaming.errors import DatasetError

    widths = {len(one.values) for item in dataset.items for one in item.embeddings}
    live_id = ReleasePublisher(settings).list().live_id if widths else ""
    if not live_id:
        return
    try:
        width = int(release_store(settings).manifest(live_id).meta["model"]["content_dim"])
    except (IncompatibleCheckpoint, OSError, KeyError, TypeError, ValueError):
        return  # the tokenizer says it, item by item
    if width not in widths:
        raise DatasetError(
            f"the vectors of {dataset.name} have {', '.join(map(str, sorted(widths)))} numbers, and those of "
            f"the live release {live_id} have {width}: take the vectors away, so that the texts are "
            "embedded, or `headrace train --data` on them"
        )


def items_until(dataset: "Dataset", end: int) -> "list[Item]":
    """The items that were announced by the time of the last event before `end`."""
    last_ms = int(dataset.time_ms_N[end - 1]) if end else 0
    return [item for item in dataset.announcements() if item.announced_time_ms <= last_ms]


def announce(settings: Settings, producer: "Producer", items: "Sequence[Item]", bars: "Stages") -> int:
    """Writes the items that have no semantic ID yet, or were never announced, to their topic; counts them.

    Waits until each has one: events on an item without it would wait at the learner, and end as dead letters.
    Raises BackendUnavailable when the tokenizer makes no progress.
    """
    from services.learner.cold_start.announcements import announce_items, not_announced

    if not has_live_release(settings):
        announce_items(producer, items, bars)
        return len(items)
    with calls.tokenizer(settings) as stub:
        missing = set(_without_sid(stub, [item.item_id for item in items]))
        unheard = {item.item_id for item in not_announced(settings.broker.bootstrap_servers, items)}
        new = [item for item in items if item.item_id in missing | unheard]
        announce_items(producer, new, bars)
        _wait_for_sids(stub, missing, bars)
    return len(new)


def has_live_release(settings: Settings) -> bool:
    """Whether there is a codebook to make semantic IDs with."""
    from services.releases.publisher import ReleasePublisher

    return ReleasePublisher(settings).list().live is not None


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
    for part in _parts(item_ids):
        sids = stub.Tokenize(TokenizeRequest(item_ids=part), timeout=calls.CALL_TIMEOUT_S).sids
        missing += [item_id for item_id in part if item_id not in sids]
    return missing


def _parts(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(things), _CHUNK_ITEMS):
        yield things[first : first + _CHUNK_ITEMS]
