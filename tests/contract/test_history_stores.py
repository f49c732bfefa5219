"""What the gateway needs of a history store, of everything that it may read: they all say the same.

A store opened for writing, one opened for reading beside a writer in another process, and the fresh history
over each, whose events are applied sooner or later. Each check uses users of its own.
"""

import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from protos.headrace.v1.events_pb2 import Action, Event, HistoryEvent
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import HistoryStore, Written
from tests.contract.history_writer import WriterProcess, apply

NUM_PARTITIONS = 3
TIME_MS = 1_700_000_000_000
Apply = Callable[[Sequence[Written]], None]


@dataclass(kw_only=True)
class Place:
    """A history that is read, and the way by which events get there; what was written can be read."""

    history: HistoryStore | FreshHistory
    apply: Apply
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    _next: list[int] = field(default_factory=lambda: [0] * NUM_PARTITIONS)
    _unapplied: list[Written] = field(default_factory=list)

    def write(self, events: Sequence[Event]) -> None:
        """The events in the order of the stream, a user's in one partition."""
        for event in events:
            partition = sum(event.user_id.encode()) % NUM_PARTITIONS
            self._unapplied.append(
                Written(event=event, position=f"interactions/{partition}", offset=self._next[partition])
            )
            self._next[partition] += 1
        num_applied = len(self._unapplied)
        if isinstance(self.history, FreshHistory):
            for one in self._unapplied[num_applied - len(events) :]:
                self.history.wrote(one)
            # the projector is behind, sometimes by nothing
            num_applied = self.rng.randrange(num_applied + 1)
        self.apply(self._unapplied[:num_applied])
        del self._unapplied[:num_applied]


def make_place(kind: str, path: Path, closing: ExitStack) -> Place:
    beside_writer, fresh = kind.split(", ")
    apply_all: Apply
    if beside_writer == "reader":
        apply_all = closing.enter_context(WriterProcess(path)).apply
        store = closing.enter_context(HistoryStore.open(path, read_only=True))
    else:
        store = writer = closing.enter_context(HistoryStore.open(path, read_only=False))

        def apply_all(ones: Sequence[Written]) -> None:
            apply(writer, ones)

    return Place(history=FreshHistory(store) if fresh == "fresh" else store, apply=apply_all)


@pytest.fixture(scope="module", params=["writer, plain", "reader, plain", "writer, fresh", "reader, fresh"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each history that may be read, in turn."""
    with ExitStack() as closing:
        yield make_place(request.param, tmp_path_factory.mktemp("history") / "store", closing)


@pytest.fixture
def user() -> str:
    """Somebody new, of a long name."""
    return f"user-{uuid.uuid4().hex}" + 200 * "名"


def make_event(
    user_id: str, n: int, action: Action.ValueType = Action.ACTION_CLICK, **changes: object
) -> Event:
    fields: dict[str, object] = {
        "event_id": f"e{n}",
        "item_id": f"i{n}",
        "event_time_ms": TIME_MS + 1_000 * n,
        "value": 0.25 * n,
    }
    return Event(user_id=user_id, action=action, **(fields | changes))  # type: ignore[arg-type]


def as_kept(event: Event) -> HistoryEvent:
    """What of an event stands in a history."""
    return HistoryEvent(
        item_id=event.item_id, action=event.action, event_time_ms=event.event_time_ms, value=event.value
    )


class Reference:
    """The same, slow and obvious: each id of a user once, sorted by time, equal times as they came."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = defaultdict(list)

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            known = self._events[event.user_id]
            if event.event_id not in [one.event_id for one in known]:
                known.append(event)

    def count(self, user_id: str) -> int:
        return len(self._events[user_id])

    def get(self, user_id: str, limit: int, *, with_shown: bool) -> list[HistoryEvent]:
        in_order = sorted(self._events[user_id], key=lambda event: event.event_time_ms)
        if with_shown:
            return [as_kept(event) for event in in_order[len(in_order) - min(limit, len(in_order)) :]]
        shown, skipped = Action.ACTION_IMPRESSION, Action.ACTION_SKIP
        did = [event for event in in_order if event.action not in (shown, skipped)]
        turned_down = [event for event in in_order if event.action == skipped]
        newest = {id(one) for kind in (did, turned_down) for one in kind[len(kind) - min(limit, len(kind)) :]}
        return [as_kept(event) for event in in_order if id(event) in newest]


def test_a_stranger_has_no_history(place: Place, user: str) -> None:
    assert place.history.get(user, 10) == place.history.get(user, 10, with_shown=True) == []
    assert place.history.count(user) == 0


def test_the_newest_come_last_and_the_limit_counts_from_the_newest(place: Place, user: str) -> None:
    events = [make_event(user, n) for n in range(5)]
    place.write(events)
    assert place.history.get(user, 3) == [as_kept(event) for event in events[2:]]
    assert place.history.get(user, 100) == [as_kept(event) for event in events]
    assert place.history.get(user, 0) == place.history.get(user, 0, with_shown=True) == []
    assert place.history.count(user) == 5


def test_a_late_event_stands_by_its_time_and_those_of_one_time_as_they_came(place: Place, user: str) -> None:
    numbers = [3, 1, 2, 1, 3, 0]
    for n, at in enumerate(numbers):
        place.write([make_event(user, n, event_time_ms=TIME_MS + at)])
    assert [event.item_id for event in place.history.get(user, 10)] == ["i5", "i1", "i3", "i2", "i0", "i4"]


def test_neither_skips_nor_what_was_shown_hide_what_was_done(place: Place, user: str) -> None:
    place.write([make_event(user, 0), make_event(user, 1, Action.ACTION_PURCHASE)])
    place.write([make_event(user, n, Action.ACTION_SKIP) for n in range(2, 8)])
    place.write([make_event(user, n, Action.ACTION_IMPRESSION) for n in range(8, 30)])
    assert [event.item_id for event in place.history.get(user, 2)] == ["i0", "i1", "i6", "i7"]
    newest = place.history.get(user, 3, with_shown=True)
    assert [event.item_id for event in newest] == ["i27", "i28", "i29"]
    assert place.history.count(user) == 30


def test_an_event_that_is_sent_again_counts_once(place: Place, user: str) -> None:
    first = make_event(user, 0)
    for _ in range(3):
        place.write([first, make_event(user, 1, event_id="e0")])
    assert place.history.get(user, 10) == [as_kept(first)]
    assert place.history.count(user) == 1
    # the same id of another user is another event
    place.write([make_event(f"another-{user}", 2, event_id="e0")])
    assert place.history.count(f"another-{user}") == 1


def test_the_version_is_another_one_whenever_a_history_may_have_changed(place: Place, user: str) -> None:
    for n in range(8):
        before = place.history.version
        place.history.get(user, 10)
        place.history.count(user)
        assert place.history.version == before
        place.write([make_event(user, n)])
        assert place.history.version != before


@pytest.mark.parametrize("seed", range(3))
def test_random_streams_equal_an_obvious_reference(place: Place, user: str, seed: int) -> None:
    rng, reference = random.Random(seed), Reference()
    users = [f"{n}-{user}" for n in range(5)]
    actions = [Action.ACTION_CLICK, Action.ACTION_LIKE, Action.ACTION_SKIP, Action.ACTION_IMPRESSION]
    for _ in range(15):
        batch = [
            make_event(
                rng.choice(users),
                rng.randrange(10**6),
                rng.choice(actions),
                event_id=f"e{rng.randrange(60)}",
                event_time_ms=TIME_MS + rng.randrange(40),
            )
            for _ in range(rng.randrange(12))
        ]
        place.write(batch)
        reference.write(batch)
        for user_id in users:
            assert place.history.count(user_id) == reference.count(user_id)
            for limit, with_shown in ((1, False), (4, True), (4, False), (1_000, True)):
                found = place.history.get(user_id, limit, with_shown=with_shown)
                assert found == reference.get(user_id, limit, with_shown=with_shown)
