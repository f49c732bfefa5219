"""Live statistics of items: decayed counts, co-occurrence, first and last event, all by event time.

The one implementation of them, for serving and for learning: whoever has consumed the same events in the same
order sees the same numbers, to the bit. Items are known here by their id and an own row in order of the first
event, so a statistic outlives the release (and the catalogue rows) it was made with. Users are known by a
64-bit hash and their last few items. There is no clock: time is the event's, and the "now" of a request is
data. `models.ranking.features` turns these numbers into a ranker's input.

Only wishes count: neither what was shown nor what was turned down moves a number of any item, and an item
that was only shown has no row here. The stream's own count and clock (`num_events`, `newest_ms`) go on with
every event: they make all items older, none fresher. Nor does one user alone move much: an item counts once
for each user and window of `count_window_s`, and in three of those windows at most.

Extra shape letters: U users, R recent items, J neighbours kept per item, H half-lives.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from models.arrays import Float64Array, Int64Array
from models.batch import PASSIVE_ACTIONS
from models.kernels.row_sets import summed_by_row
from models.ranking.config import StatisticsConfig
from models.ranking.hottest import COLD, Hottest
from models.ranking.statistics_columns import (
    ItemColumns,
    TieColumns,
    read_items,
    read_ties,
    strengthen_ties,
)
from models.sequences.dedupe import DedupeWindow, hash_id

_MS = 1000.0
# The windows in which a user's wishes for one item count: spread over a year, they are still one user's.
_MAX_COUNTED_WINDOWS = 3
# This many of the hottest items are kept at hand; a request asks for fewer.
_NUM_HOT = 512


@dataclass(frozen=True, kw_only=True)
class ItemStatistics:
    """What is known of M items at one moment; an item without any event has zeros and -1 times.

    `count_MH` wishes decayed by each half-life, `total_M` wishes ever, both float64; `first_ms_M` and
    `last_ms_M` the times of the first and the last one, int64, ms since the Unix epoch.
    """

    count_MH: Float64Array
    total_M: Float64Array
    first_ms_M: Int64Array
    last_ms_M: Int64Array


class LiveStatistics:
    """Counts and neighbours, updated event by event in stream order."""

    def __init__(self, config: StatisticsConfig) -> None:
        self.config = config
        self.num_events = 0
        self.newest_ms = 0
        self._row_of: dict[str, int] = {}
        self._item_ids: list[str] = []
        # (time, row) of each user's last wishes by time; users in order of arrival: the oldest go first
        self._recent_of: dict[int, list[tuple[int, int]]] = {}
        self._counted = DedupeWindow(2 * config.max_counted)
        self._window_ms = int(config.count_window_s * _MS)
        self._half_life_H = np.asarray(config.half_lives_s, dtype=np.float64) * _MS
        self._tie_half_life = config.cooccurrence_half_life_s * _MS
        self._trend = config.trending_half_life
        self._hottest = Hottest(_NUM_HOT)
        self._allocate(1024)

    def _allocate(self, capacity: int) -> None:
        num_half_lives, num_neighbours = len(self.config.half_lives_s), self.config.max_neighbours
        self._count_NH = np.zeros((capacity, num_half_lives))
        self._total_N = np.zeros(capacity)
        self._reference_N = np.zeros(capacity, dtype=np.int64)  # the time to which the counts are decayed
        self._first_N = np.full(capacity, -1, dtype=np.int64)
        self._last_N = np.full(capacity, -1, dtype=np.int64)
        self._neighbour_NJ = np.full((capacity, num_neighbours), -1, dtype=np.int64)
        self._weight_NJ = np.zeros((capacity, num_neighbours))
        self._paired_N = np.zeros(capacity, dtype=np.int64)  # the time to which the weights are decayed
        self._heat_N = np.full(capacity, COLD)

    def _columns(self) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
        return {
            "count": self._count_NH,
            "total": self._total_N,
            "reference_ms": self._reference_N,
            "first_ms": self._first_N,
            "last_ms": self._last_N,
            "neighbour": self._neighbour_NJ,
            "weight": self._weight_NJ,
            "paired_ms": self._paired_N,
            "heat": self._heat_N,
        }

    def __len__(self) -> int:
        return len(self._item_ids)

    def item_ids(self) -> Sequence[str]:
        """The items that had an event, by row."""
        return self._item_ids

    def rows(self, item_ids: Iterable[str]) -> Int64Array:
        """The statistics' own row of each item, int64, -1 for one without any event."""
        get = self._row_of.get
        return np.fromiter((get(item_id, -1) for item_id in item_ids), dtype=np.int64)

    def _row(self, item_id: str) -> int:
        row = self._row_of.get(item_id)
        if row is None:
            row = len(self._item_ids)
            if row == len(self._total_N):
                old = self._columns()
                self._allocate(2 * row)
                for name, column in self._columns().items():
                    column[:row] = old[name]
            self._row_of[item_id] = row
            self._item_ids.append(item_id)
        return row

    def update_many(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        actions: Sequence[int],
        times_ms: Sequence[int],
    ) -> None:
        """`update` for each event in turn."""
        for user_id, item_id, action, time_ms in zip(user_ids, item_ids, actions, times_ms, strict=True):
            self.update(user_id, item_id, int(action), int(time_ms))

    def update(self, user_id: str, item_id: str, action: int, time_ms: int) -> bool:
        """Takes in one event and says whether it counted.

        A late one counts as decayed, and ties the same items, as if it had come in time. An event that is no
        wish, or whose user had the item in the same window or in three others, does not count; in the second
        case the item is still the user's last, so that the next one is tied to it.
        """
        self.num_events += 1
        self.newest_ms = max(self.newest_ms, time_ms)
        if action in PASSIVE_ACTIONS:
            return False
        row, user = self._row(item_id), hash_id(user_id)
        counts = self._admit(user, item_id, time_ms // self._window_ms)
        if counts:
            self._count(row, time_ms)
        self._remember(user, row, time_ms, is_tied=counts)
        return counts

    def _admit(self, user: int, item_id: str, window: int) -> bool:
        """Whether a wish of the user for the item counts in this window."""
        if not self._counted.admit(f"{user} {window} {item_id}"):
            return False
        return any(self._counted.admit(f"{user} #{n} {item_id}") for n in range(_MAX_COUNTED_WINDOWS))

    def _count(self, row: int, time_ms: int) -> None:
        reference = int(self._reference_N[row])
        if self._first_N[row] < 0:
            reference = time_ms
            self._first_N[row] = self._last_N[row] = self._reference_N[row] = time_ms
        self._first_N[row] = min(int(self._first_N[row]), time_ms)
        self._last_N[row] = max(int(self._last_N[row]), time_ms)
        added_H = np.exp2(-abs(time_ms - reference) / self._half_life_H)
        if time_ms > reference:
            self._count_NH[row] *= added_H
            self._reference_N[row] = reference = time_ms
            added_H = np.ones_like(added_H)
        self._count_NH[row] += added_H
        self._total_N[row] += 1.0
        # log2 of the count as if decayed to time 0: all counts fade alike, so this order holds at any "now"
        trend = self._trend
        self._heat_N[row] = np.log2(self._count_NH[row, trend]) + reference / self._half_life_H[trend]
        self._hottest.note(row, self._heat_N)

    def _remember(self, user: int, row: int, time_ms: int, *, is_tied: bool) -> None:
        """Puts a wish among the user's last ones, by its time, and ties it to those around it.

        Items a b c at times 1 2 3 that come as a c b: b is tied to a, and c to b, as in order. One that is
        older than all of the last ones is tied to none: what came between is no longer known.
        """
        recent = [one for one in self._recent_of.pop(user, []) if one[1] != row or one[0] > time_ms]
        earlier = [other for at_ms, other in recent if at_ms <= time_ms]
        later = recent[len(earlier) :]
        is_beyond = not earlier and len(later) == self.config.num_recent_items
        # an item that came again since stands where it came last
        if not is_beyond and row not in (other for _, other in later):
            if is_tied and earlier:
                self._pair(np.asarray(earlier[::-1]), row, time_ms)
            if is_tied:
                for age, (at_ms, other) in enumerate(later):
                    self._pair(np.asarray([row]), other, at_ms, age=age)
            insort(recent, (time_ms, row), key=lambda one: one[0])
        self._recent_of[user] = recent[-self.config.num_recent_items :]
        if len(self._recent_of) > self.config.max_users:
            del self._recent_of[next(iter(self._recent_of))]

    def _pair(self, other_R: Int64Array, row: int, time_ms: int, *, age: int = 0) -> None:
        """Strengthens the ties between `row` and the `other_R` items before it, newest first, both ways.

        The newest of `other_R` came `age` wishes before the one right before `row`.
        """
        ties = TieColumns(self._neighbour_NJ, self._weight_NJ, self._paired_N)
        config = self.config
        strengthen_ties(
            ties,
            self._tie_half_life,
            other_R,
            row,
            time_ms,
            age,
            config.recency_decay,
            config.backward_weight,
        )

    def items(self, row_M: Int64Array, time_ms: int) -> ItemStatistics:
        """The statistics of own rows `row_M` (int64; -1: an item without events) at `time_ms`."""
        columns = ItemColumns(self._count_NH, self._total_N, self._reference_N, self._first_N, self._last_N)
        count_MH, total_M, first_ms_M, last_ms_M = read_items(columns, self._half_life_H, row_M, time_ms)
        return ItemStatistics(count_MH=count_MH, total_M=total_M, first_ms_M=first_ms_M, last_ms_M=last_ms_M)

    def totals(self, row_M: Int64Array) -> Float64Array:
        """Wishes ever, float64 [M], for own rows (int64); 0 for -1."""
        total_M: Float64Array = self._total_N[row_M] * (row_M >= 0)
        return total_M

    def ties(
        self, recent_R: Int64Array, row_M: Int64Array, time_ms: int
    ) -> tuple[Float64Array, Float64Array]:
        """The decayed weight of the ties between distinct own rows (int64), and its share of the recent one's
        ties, both float64 [R, M]."""
        ties = TieColumns(self._neighbour_NJ, self._weight_NJ, self._paired_N)
        return read_ties(ties, self._tie_half_life, recent_R, row_M, time_ms)

    def cooccurring(self, recent_item_ids: Sequence[str], k: int) -> list[str]:
        """`cooccurring_rows` of items by their ids."""
        return [self._item_ids[row] for row in self.cooccurring_rows(self.rows(recent_item_ids), k).tolist()]

    def cooccurring_rows(self, recent_R: Int64Array, k: int) -> Int64Array:
        """The at most `k` rows most tied to the recent ones (oldest first), best first; all are own rows,
        int64, of the recent ones -1 for an item without events.

        A recent item's ties count by their share, so that a popular one does not drown the others;
        the newest counts most.
        """
        row_R = recent_R[-self.config.num_recent_items :][::-1]
        gain_R = np.asarray([self.config.recency_decay**age for age in range(len(row_R))])
        row_R, gain_R = row_R[row_R >= 0], gain_R[row_R >= 0]
        weight_RJ = self._weight_NJ[row_R]
        share_RJ = weight_RJ * (gain_R / np.maximum(weight_RJ.sum(axis=1), 1e-12))[:, None]
        neighbour_U, score_U = summed_by_row(self._neighbour_NJ[row_R], share_RJ)
        best: Int64Array = neighbour_U[np.lexsort((neighbour_U, -score_U))[:k]]
        return best

    def trending(self, k: int) -> list[str]:
        """`trending_rows` as ids."""
        return [self._item_ids[row] for row in self.trending_rows(k).tolist()]

    def trending_rows(self, k: int) -> Int64Array:
        """The at most `k` own rows with the most wishes by the trending half-life, int64, best first.

        All counts fade by the same factor, so the order does not depend on the moment of asking.
        """
        return self._hottest.best(k, self._heat_N[: len(self._item_ids)])

    def state(self) -> tuple[dict[str, Tensor], pa.Table]:
        """All of it, for `models.artifacts.checkpoint`: tensors (counts, weights and heat float64, all else
        int64), and the table of item ids by row."""
        num_items, num_users = len(self._item_ids), len(self._recent_of)
        recent_UR2 = np.full((num_users, self.config.num_recent_items, 2), -1, dtype=np.int64)
        for u, recent in enumerate(self._recent_of.values()):
            recent_UR2[u, : len(recent)] = recent
        tensors = {
            name: torch.from_numpy(column[:num_items].copy()) for name, column in self._columns().items()
        }
        tensors["user"] = torch.tensor(list(self._recent_of), dtype=torch.int64)
        tensors["recent"] = torch.from_numpy(recent_UR2)
        tensors["counted"] = self._counted.state()["hash"]
        tensors["progress"] = torch.tensor([self.num_events, self.newest_ms], dtype=torch.int64)
        return tensors, pa.table({"item_id": pa.array(self._item_ids, pa.string())})

    @classmethod
    def from_state(
        cls, config: StatisticsConfig, tensors: dict[str, Tensor], table: pa.Table
    ) -> "LiveStatistics":
        """The instance that `state` described, same dtypes.

        Raises ValueError where shapes are those of other settings, KeyError where a tensor is missing.
        """
        statistics = cls(config)
        statistics._item_ids = table.column("item_id").to_pylist()
        statistics._row_of = {item_id: row for row, item_id in enumerate(statistics._item_ids)}
        num_items = len(statistics._item_ids)
        statistics._allocate(max(1024, num_items))
        for name, column in statistics._columns().items():
            saved = tensors[name].numpy()
            if saved.shape != (num_items, *column.shape[1:]):
                raise ValueError(f"statistics {name} have shape {saved.shape}: kept with other settings")
            column[:num_items] = saved
        for user, recent in zip(tensors["user"].tolist(), tensors["recent"].tolist(), strict=True):
            statistics._recent_of[user] = [(time_ms, row) for time_ms, row in recent if row >= 0]
        statistics._counted = DedupeWindow.from_state(2 * config.max_counted, {"hash": tensors["counted"]})
        statistics.num_events, statistics.newest_ms = tensors["progress"].tolist()
        statistics._hottest.begin(statistics._heat_N[:num_items])
        return statistics
