"""Windowed popularity and item counters: the arithmetic, and the view that readers keep.

Owns what a `Trend` record says and how events change it. Knows no broker and no clock:
`streaming/trends/worker.py` keeps the records in Kafka, readers hand those of topic `trends` to
`TrendsView`. All times are event times, so a replay gives the numbers that the live stream gave.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from protos.headrace.v1 import events_pb2, trends_pb2
from streaming.messages.meaning import EventMeaning, Meaning

WINDOW_MS = 3_600_000
"""Tumbling windows of one hour, cut at whole hours since the Unix epoch."""

HALF_LIFE_MS = 7 * 86_400_000
"""After a week an event counts half. Part of what `Trend.decayed_score` means, hence no setting."""

COUNT_WINDOW_MS = 86_400_000
"""An item counts once for each user in a day: one user, or one bot, makes nothing popular."""

MAX_COUNT_WINDOWS = 3
"""And on this many days at most: someone who spreads events over a year is still one user."""

_HEAD_SIZE = 1_000


def fold(trend: trends_pb2.Trend, event_time_ms: int) -> None:
    """Count one event into its item's trend, in place.

    The counters come out the same in whatever order the events arrive (the score up to rounding).
    Example, window 10:00 to 11:00 holding one event: another of 10:59 makes it 2; one of 11:01 opens
    the next window at 1; a late one of 10:30 leaves that at 1 and makes the total 4.
    """
    end_ms = event_time_ms - event_time_ms % WINDOW_MS + WINDOW_MS
    if end_ms > trend.window_end_time_ms:
        trend.decayed_score *= 0.5 ** ((end_ms - trend.window_end_time_ms) / HALF_LIFE_MS)
        trend.window_end_time_ms = end_ms
        trend.num_events_window = 1
    elif end_ms == trend.window_end_time_ms:
        trend.num_events_window += 1
    trend.decayed_score += 0.5 ** ((trend.window_end_time_ms - event_time_ms) / HALF_LIFE_MS)
    trend.num_events_total += 1


class TrendCounter:
    """Counts batches of `interactions`: each wish once, and each user's wishes for one item once a day.

    On `MAX_COUNT_WINDOWS` days at most.

    Two guards. An offset below the item's `next_offsets` is in the trend already: a batch read again
    after a crash changes nothing. And the last `num_remembered` users with their items and days are
    known to this counter, and with them a producer's duplicates; that memory does not outlive it, so what
    is sent again after a restart counts twice.

    `ends` are the offsets after the last record of each partition. An item that was counted beyond them was
    counted in a topic that is gone: its offsets say nothing of the one that was made anew.
    """

    def __init__(
        self, meaning: EventMeaning, ends: Mapping[int, int], *, num_remembered: int = 100_000
    ) -> None:
        self._meaning = meaning
        self._ends = dict(ends)
        self._num_remembered = num_remembered
        # days of a user and an item: 1; a user and an item: the number of days
        self._recent: OrderedDict[bytes, int] = OrderedDict()

    def count_many(
        self,
        records: Iterable[tuple[int, int, events_pb2.Event]],
        load: Callable[[str], trends_pb2.Trend | None],
    ) -> dict[str, trends_pb2.Trend]:
        """The new trends of the items that (partition, offset, event) records change, by item_id.

        `load` gives an item's trend so far, which is the counter's own from then on, or None.
        Only wishes count: to be shown is not to be popular, lists would feed on themselves.
        """
        changed: dict[str, trends_pb2.Trend] = {}
        loaded: dict[str, trends_pb2.Trend] = {}
        for partition, offset, event in records:
            end = self._ends[partition] = max(self._ends.get(partition, 0), offset + 1)
            if self._meaning.of(event.action, event.value) is not Meaning.WISH:
                continue
            item_id = event.item_id
            trend = loaded.get(item_id)
            if trend is None:
                trend = loaded[item_id] = load(item_id) or trends_pb2.Trend(item_id=item_id)
            is_counted = offset < trend.next_offsets.get(partition, 0) <= end
            if is_counted or self._has_counted(event):
                continue
            fold(trend, event.event_time_ms)
            trend.next_offsets[partition] = offset + 1
            changed[item_id] = trend
        return changed

    def _has_counted(self, event: events_pb2.Event) -> bool:
        """Whether the user's wishes for the item no longer count on that day; remembers it if they do."""
        pair = f"{event.user_id}\n{event.item_id}"
        day = _key(f"{pair}\n{event.event_time_ms // COUNT_WINDOW_MS}")
        if day in self._recent:
            return True
        days = _key(pair)
        num_days = self._recent.pop(days, 0)
        self._recent[days] = min(num_days + 1, MAX_COUNT_WINDOWS)
        self._recent[day] = 1
        while len(self._recent) > 2 * self._num_remembered:
            self._recent.popitem(last=False)
        return num_days >= MAX_COUNT_WINDOWS


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class TrendsView:
    """The newest trend of every item, and the most popular ones without sorting them all.

    Popularity is log2 of the decayed score at one moment common to all items. It only ever rises as
    events come in, so an item outside the kept head can enter it only by a record of its own.
    """

    def __init__(self) -> None:
        self._trends: dict[str, trends_pb2.Trend] = {}
        self._popularity: dict[str, float] = {}
        self._head: set[str] = set()
        self._floor = -math.inf

    def __len__(self) -> int:
        return len(self._trends)

    def get(self, item_id: str) -> trends_pb2.Trend | None:
        """The item's newest trend, or None if nobody has acted on it."""
        return self._trends.get(item_id)

    def apply(self, trend: trends_pb2.Trend) -> None:
        """Take in one record of `trends`; the newest one of an item replaces the others."""
        item_id = trend.item_id
        popularity = _popularity(trend)
        lowered = popularity < self._popularity.get(item_id, -math.inf)
        self._trends[item_id] = trend
        self._popularity[item_id] = popularity
        if lowered:  # somebody began the topic anew
            self._rebuild_head()
        elif popularity >= self._floor:
            self._head.add(item_id)
            if len(self._head) > 2 * _HEAD_SIZE:
                self._shrink_head(self._head)

    def remove(self, item_id: str) -> None:
        """Forget an item: its record was deleted (a tombstone)."""
        if self._trends.pop(item_id, None) is not None:
            del self._popularity[item_id]
            self._rebuild_head()

    def top(self, k: int, exclude: Collection[str] = ()) -> list[trends_pb2.Trend]:
        """The k most popular items, best first, ties by item_id; fewer where there are no more."""
        wanted = k + len(exclude)
        pool: Iterable[str] = self._head if wanted <= len(self._head) else self._trends
        skip = frozenset(exclude)
        order = sorted(pool, key=self._order)
        return [self._trends[item_id] for item_id in order if item_id not in skip][:k]

    def _order(self, item_id: str) -> tuple[float, str]:
        return -self._popularity[item_id], item_id

    def _rebuild_head(self) -> None:
        self._floor = -math.inf
        self._shrink_head(self._trends)

    def _shrink_head(self, pool: Collection[str]) -> None:
        order = sorted(pool, key=self._order)
        self._head = set(order[:_HEAD_SIZE])
        if len(order) > _HEAD_SIZE:
            self._floor = self._popularity[order[_HEAD_SIZE]]


def _popularity(trend: trends_pb2.Trend) -> float:
    if trend.decayed_score <= 0.0:
        return -math.inf
    return math.log2(trend.decayed_score) + trend.window_end_time_ms / HALF_LIFE_MS
