"""The trend arithmetic against counts made the obvious way, and the view against a full sort."""

import math
import random
from collections import Counter

import pytest

from protos.headrace.v1.events_pb2 import (
    ACTION_CLICK,
    ACTION_IMPRESSION,
    ACTION_PURCHASE,
    ACTION_SKIP,
    Action,
    Event,
)
from protos.headrace.v1.trends_pb2 import Trend
from streaming.messages.meaning import EventMeaning
from streaming.trends.counting import COUNT_WINDOW_MS, HALF_LIFE_MS, WINDOW_MS, TrendCounter, TrendsView, fold

START_MS = 1_700_000_000_000 - 1_700_000_000_000 % WINDOW_MS

ENDS = dict.fromkeys(range(8), 1 << 40)  # every offset is one that the topic has


def make_event(number: int, item_id: str, time_ms: int, action: Action = ACTION_CLICK) -> Event:
    return Event(
        event_id=f"e{number}", user_id=f"u{number}", item_id=item_id, action=action, event_time_ms=time_ms
    )


def make_stream(num_events: int, seed: int = 0) -> list[tuple[int, int, Event]]:
    """Events over ten hours with repeated items, spread over four partitions."""
    rng = random.Random(seed)
    next_offsets = Counter[int]()
    records = []
    for number in range(num_events):
        partition = rng.randrange(4)
        event = make_event(
            number, f"i{int(rng.paretovariate(0.7))}", START_MS + rng.randrange(10 * WINDOW_MS)
        )
        records.append((partition, next_offsets[partition], event))
        next_offsets[partition] += 1
    return records


def count_all(records: list[tuple[int, int, Event]], batch: int, counter: TrendCounter) -> dict[str, Trend]:
    """Counts in batches through bytes, as the worker does."""
    stored: dict[str, bytes] = {}

    def load(item_id: str) -> Trend | None:
        return Trend.FromString(stored[item_id]) if item_id in stored else None

    for start in range(0, len(records), batch):
        changed = counter.count_many(records[start : start + batch], load)
        stored.update((item_id, trend.SerializeToString()) for item_id, trend in changed.items())
    return {item_id: Trend.FromString(value) for item_id, value in stored.items()}


def test_counts_equal_the_obvious_ones() -> None:
    records = make_stream(2_000)
    trends = count_all(records, 97, TrendCounter(EventMeaning(), ENDS))
    by_item: dict[str, list[int]] = {}
    for _, _, event in records:
        by_item.setdefault(event.item_id, []).append(event.event_time_ms)
    assert trends.keys() == by_item.keys()
    for item_id, times in by_item.items():
        trend = trends[item_id]
        end_ms = max(times) // WINDOW_MS * WINDOW_MS + WINDOW_MS
        assert trend.window_end_time_ms == end_ms
        assert trend.num_events_window == sum(end_ms - WINDOW_MS <= time < end_ms for time in times)
        assert trend.num_events_total == len(times)
        assert trend.decayed_score == pytest.approx(
            sum(0.5 ** ((end_ms - time) / HALF_LIFE_MS) for time in times)
        )


def test_example_of_the_docstring() -> None:
    trend = Trend(item_id="a")
    ten = START_MS
    for minutes, window, total in ((5, 1, 1), (59, 2, 2), (61, 1, 3), (30, 1, 4)):
        fold(trend, ten + minutes * 60_000)
        assert (trend.num_events_window, trend.num_events_total) == (window, total)
    assert trend.window_end_time_ms == ten + 2 * WINDOW_MS


def test_partitions_may_run_apart() -> None:
    """Whatever the interleaving of the partitions, the counters end the same."""
    records = make_stream(1_000)
    in_turn = sorted(records, key=lambda record: record[0])
    first, second = (
        count_all(order, 100, TrendCounter(EventMeaning(), ENDS)) for order in (records, in_turn)
    )
    assert first.keys() == second.keys()
    for item_id, trend in first.items():
        other = second[item_id]
        assert trend.decayed_score == pytest.approx(other.decayed_score)
        trend.decayed_score = other.decayed_score
        assert trend == other


def test_a_batch_read_again_changes_nothing() -> None:
    records = make_stream(500)
    once = count_all(records, 100, TrendCounter(EventMeaning(), ENDS))
    # a new process: it remembers nobody
    assert (
        TrendCounter(EventMeaning(), ENDS).count_many(
            records[300:], lambda item_id: Trend.FromString(once[item_id].SerializeToString())
        )
        == {}
    )


def test_a_batch_counted_in_part_is_completed() -> None:
    """Killed when the broker had only some items of the batch: those are left alone, the others counted."""
    records = make_stream(400)
    full = count_all(records, 100, TrendCounter(EventMeaning(), ENDS))
    stored = count_all(records[:300], 100, TrendCounter(EventMeaning(), ENDS))
    partly = dict(stored) | {item_id: full[item_id] for item_id in sorted(full)[::2]}

    def load(item_id: str) -> Trend | None:
        return Trend.FromString(partly[item_id].SerializeToString()) if item_id in partly else None

    partly |= TrendCounter(EventMeaning(), ENDS).count_many(records[300:], load)
    assert partly == full


def test_a_repeated_event_id_counts_once_inside_the_window() -> None:
    event = make_event(1, "a", START_MS)
    other = make_event(2, "a", START_MS)
    counter = TrendCounter(EventMeaning(), ENDS, num_remembered=1)
    state: dict[str, Trend] = {}
    changes = []
    for offset, sent in enumerate((event, event, other, event)):
        changed = counter.count_many([(0, offset, sent)], state.get)
        state |= changed
        changes.append(len(changed))
    assert changes == [1, 0, 1, 1]
    assert state["a"].num_events_total == 3


def test_one_user_counts_once_a_day_for_an_item() -> None:
    records = [
        (0, n, make_event(0, "a", START_MS + 1_000 * n)) for n in range(400)
    ]  # the user and the item are the same, the ids are not
    for n, (_, _, event) in enumerate(records):
        event.event_id = f"other-{n}"
    trends = count_all(records, 50, TrendCounter(EventMeaning(), ENDS))
    assert trends["a"].num_events_total == 1
    assert trends["a"].decayed_score <= 1.0


def test_who_spreads_his_events_over_a_year_counts_on_three_days() -> None:
    records = [(0, n, make_event(0, "a", START_MS + n * COUNT_WINDOW_MS)) for n in range(365)]
    trends = count_all(records, 50, TrendCounter(EventMeaning(), ENDS))
    assert trends["a"].num_events_total == 3


def test_ratings_count_by_their_stars() -> None:
    stars = (1.0, 2.5, 3.0, 5.0, 0.0)
    events = [make_event(n, f"i{n}", START_MS, Action.ACTION_RATING) for n in range(len(stars))]
    for event, value in zip(events, stars, strict=True):
        event.value = value
    trends = count_all(
        [(0, n, event) for n, event in enumerate(events)], 9, TrendCounter(EventMeaning(), ENDS)
    )
    assert set(trends) == {"i2", "i3"}


@pytest.mark.parametrize("action", [ACTION_IMPRESSION, ACTION_SKIP])
def test_being_shown_is_not_being_popular(action: Action) -> None:
    counter = TrendCounter(EventMeaning(), ENDS)
    assert counter.count_many([(0, 0, make_event(1, "a", START_MS, action))], lambda _: None) == {}
    changed = counter.count_many([(0, 1, make_event(2, "a", START_MS, ACTION_PURCHASE))], lambda _: None)
    assert changed["a"].num_events_total == 1
    assert dict(changed["a"].next_offsets) == {0: 2}


def test_the_view_orders_items_of_different_hours_at_one_moment() -> None:
    view = TrendsView()
    older, newer = Trend(item_id="older"), Trend(item_id="newer")
    for _ in range(3):
        fold(older, START_MS)
    for _ in range(2):
        fold(newer, START_MS + HALF_LIFE_MS)
    view.apply(older)
    view.apply(newer)
    assert [trend.item_id for trend in view.top(5)] == ["newer", "older"]
    fold(older, START_MS + HALF_LIFE_MS)
    view.apply(older)  # 3/2 + 1 > 2
    assert [trend.item_id for trend in view.top(5)] == ["older", "newer"]
    assert [trend.item_id for trend in view.top(5, exclude=["older"])] == ["newer"]
    assert view.top(0) == []
    newest = view.get("older")
    assert newest is not None
    assert newest.num_events_total == 4
    assert view.get("nobody") is None


def obvious_top(trends: dict[str, Trend], k: int, exclude: set[str]) -> list[str]:
    def popularity(trend: Trend) -> float:
        return math.log2(trend.decayed_score) + trend.window_end_time_ms / HALF_LIFE_MS

    order = sorted(trends, key=lambda item_id: (-popularity(trends[item_id]), item_id))
    return [item_id for item_id in order if item_id not in exclude][:k]


def test_the_view_agrees_with_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.trends.counting._HEAD_SIZE", 20)
    rng = random.Random(3)
    view = TrendsView()
    trends: dict[str, Trend] = {}
    for step in range(3_000):
        item_id = f"i{rng.randrange(300)}"
        if step % 500 == 499 and item_id in trends:
            view.remove(item_id)
            del trends[item_id]
        elif step % 700 == 699:
            trends[item_id] = Trend(item_id=item_id)  # begun anew: lower than before
            fold(trends[item_id], START_MS)
            view.apply(trends[item_id])
        else:
            trend = (
                Trend.FromString(trends[item_id].SerializeToString())
                if item_id in trends
                else Trend(item_id=item_id)
            )
            fold(trend, START_MS + rng.randrange(4) * HALF_LIFE_MS)
            trends[item_id] = trend
            view.apply(trend)
        if step % 50 == 0:
            exclude = set(rng.sample(sorted(trends), min(5, len(trends))))
            for k in (1, 10, 30, 400):
                assert [trend.item_id for trend in view.top(k, exclude)] == obvious_top(trends, k, exclude)
    assert len(view) == len(trends)


def test_a_record_without_a_score_is_last() -> None:
    view = TrendsView()
    trend = Trend(item_id="b")
    fold(trend, START_MS)
    view.apply(Trend(item_id="a"))
    view.apply(trend)
    assert [trend.item_id for trend in view.top(2)] == ["b", "a"]
    view.remove("unknown")


def test_offsets_of_a_topic_that_is_gone_hide_nothing_of_the_new_one() -> None:
    def event(n: int) -> Event:
        return make_event(n, "i", START_MS + n)

    stored = Trend()
    stored.CopyFrom(
        TrendCounter(EventMeaning(), {0: 90}).count_many([(0, 89, event(0))], lambda _: None)["i"]
    )
    assert stored.next_offsets[0] == 90
    counter = TrendCounter(EventMeaning(), {0: 2})
    first = counter.count_many([(0, n, event(1 + n)) for n in range(2)], lambda _: stored)["i"]
    assert first.num_events_total == 3
    again = TrendCounter(EventMeaning(), {0: 2}).count_many([(0, 1, event(2))], lambda _: first)
    assert again == {}
