"""What was just written counts at once, and exactly once, whenever the projector comes by."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import HistoryStore, Written
from tests.contract.history_writer import apply


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HistoryStore]:
    with HistoryStore.open(tmp_path / "history", read_only=False) as store:
        yield store


def written(offset: int, *, user_id: str = "u") -> Written:
    event = Event(event_id=f"e{offset}", user_id=user_id, item_id=f"i{offset}", action=ACTION_CLICK)
    event.event_time_ms = 1_000 + offset
    return Written(event=event, position="interactions/0", offset=offset)


def items(history: FreshHistory, user_id: str = "u", limit: int = 10) -> list[str]:
    return [event.item_id for event in history.get(user_id, limit)]


def test_an_event_counts_before_it_is_applied_and_once_after(store: HistoryStore) -> None:
    history = FreshHistory(store)
    ones = [written(n) for n in range(4)]
    apply(store, [ones[0]])
    for one in (ones[2], ones[1]):  # confirmations may come out of order
        history.wrote(one)
    assert items(history) == ["i0", "i1", "i2"]
    assert items(history, limit=2) == ["i1", "i2"]
    assert items(history, limit=0) == []
    assert history.count("u") == 3
    apply(store, [ones[1]])
    assert items(history) == ["i0", "i1", "i2"]
    assert history.count("u") == 3
    apply(store, [ones[2], ones[3]])  # the last one came by another way
    assert items(history) == ["i0", "i1", "i2", "i3"]
    assert history.count("u") == 4
    assert history.get("u", 1)[0].event_time_ms == 1_003


def test_beyond_its_bound_the_oldest_wait_for_the_projector(store: HistoryStore) -> None:
    history = FreshHistory(store, max_waiting=2)
    history.wrote(written(0))
    apply(store, [written(0)])
    assert items(history) == ["i0"]
    history.wrote(written(1))
    history.wrote(written(2, user_id="another"))  # pushes out what was applied, not i1
    assert items(history) == ["i0", "i1"]
    history.wrote(written(3, user_id="another"))
    assert items(history) == ["i0"]
    assert items(history, "another") == ["i2", "i3"]
