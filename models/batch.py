"""The array and tensor dataclasses that cross the boundary of `models`.

Shape letters, here and in the whole package: B batch, T history, N items or events, M candidates,
K beams, L semantic levels, C = L + 1 codes of an item, V codebook size, D width, E content width.

Item *rows* are positions in a `CatalogueIndex`; -1 stands for no item. Actions are the numbers of
`headrace.v1.Action`, times are milliseconds since the Unix epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.arrays import Float64Array, Int64Array

ACTION_NAMES = ("unspecified", "impression", "click", "like", "cart", "purchase", "skip", "rating")
NUM_ACTIONS = len(ACTION_NAMES)
IMPRESSION, SKIP = ACTION_NAMES.index("impression"), ACTION_NAMES.index("skip")
# No wish for the item: it was shown, or turned down. Whoever makes a batch gives a rating of few stars as a
# skip, and one without stars as an impression (`streaming.messages.meaning`).
PASSIVE_ACTIONS = frozenset((IMPRESSION, SKIP))


@dataclass(frozen=True, kw_only=True)
class EventBatch:
    """N events in stream order, one column per field.

    `event_ids` and `user_ids` are strings; `item_N` int64 rows, all known (>= 0); `action_N` int64;
    `time_ms_N` int64; `value_N` float64. Raises ValueError for columns of different lengths.
    """

    event_ids: Sequence[str]
    user_ids: Sequence[str]
    item_N: Int64Array
    action_N: Int64Array
    time_ms_N: Int64Array
    value_N: Float64Array

    def __len__(self) -> int:
        return len(self.user_ids)

    def __post_init__(self) -> None:
        lengths = {len(self.event_ids), len(self.user_ids)} | {
            len(column) for column in (self.item_N, self.action_N, self.time_ms_N, self.value_N)
        }
        if len(lengths) != 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")

    @property
    def is_wish_N(self) -> npt.NDArray[np.bool_]:
        """Which events are wishes for their items, bool [N]."""
        return ~np.isin(self.action_N, list(PASSIVE_ACTIONS))

    @property
    def is_aversion_N(self) -> npt.NDArray[np.bool_]:
        """Which events turn their items down, bool [N]."""
        is_aversion_N: npt.NDArray[np.bool_] = self.action_N == SKIP
        return is_aversion_N

    @property
    def keys(self) -> list[str]:
        """What tells the events apart: each one's user and id. Ids have no line breaks."""
        return [f"{user}\n{event}" for user, event in zip(self.user_ids, self.event_ids, strict=True)]

    def followed_by(self, other: "EventBatch") -> "EventBatch":
        """These events, and then those of the other batch."""
        return EventBatch(
            event_ids=[*self.event_ids, *other.event_ids],
            user_ids=[*self.user_ids, *other.user_ids],
            item_N=np.concatenate([self.item_N, other.item_N]),
            action_N=np.concatenate([self.action_N, other.action_N]),
            time_ms_N=np.concatenate([self.time_ms_N, other.time_ms_N]),
            value_N=np.concatenate([self.value_N, other.value_N]),
        )

    def select(self, index_N: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "EventBatch":
        """The events at `index_N` (integer positions, or a bool mask of all N), in that order."""
        positions = np.arange(len(self))[index_N]
        return EventBatch(
            event_ids=[self.event_ids[i] for i in positions],
            user_ids=[self.user_ids[i] for i in positions],
            item_N=self.item_N[positions],
            action_N=self.action_N[positions],
            time_ms_N=self.time_ms_N[positions],
            value_N=self.value_N[positions],
        )


@dataclass(frozen=True, kw_only=True)
class HistoryBatch:
    """B histories, oldest event first, padded on the right.

    `item_BT` int64 rows (padding -1), `action_BT` int64 (padding 0), `time_ms_BT` int64 (padding 0),
    `length_B` int64 (0 to T).
    """

    item_BT: Tensor
    action_BT: Tensor
    time_ms_BT: Tensor
    length_B: Tensor

    @classmethod
    def from_lists(
        cls,
        items: Sequence[Sequence[int]],
        actions: Sequence[Sequence[int]],
        times_ms: Sequence[Sequence[int]],
        *,
        max_history: int,
    ) -> "HistoryBatch":
        """Pads B histories to the longest, each cut to its newest `max_history` events."""
        lengths = [min(len(row), max_history) for row in items]
        width = max(1, max(lengths, default=1))

        def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            padded_BT = np.full((len(rows), width), fill, dtype=np.int64)
            for padded_T, row, length in zip(padded_BT, rows, lengths, strict=True):
                padded_T[:length] = row[-max_history:]
            return torch.from_numpy(padded_BT)

        return cls(
            item_BT=pad(items, -1),
            action_BT=pad(actions, 0),
            time_ms_BT=pad(times_ms, 0),
            length_B=torch.from_numpy(np.array(lengths, dtype=np.int64)),
        )

    def __len__(self) -> int:
        return int(self.length_B.shape[0])

    def padded(self, num: int, width: int) -> "HistoryBatch":
        """The same histories in `width` columns, and empty ones up to `num`."""
        at_end = (0, width - self.item_BT.shape[1], 0, num - len(self))
        return HistoryBatch(
            item_BT=functional.pad(self.item_BT, at_end, value=-1),
            action_BT=functional.pad(self.action_BT, at_end),
            time_ms_BT=functional.pad(self.time_ms_BT, at_end),
            length_B=functional.pad(self.length_B, at_end[2:]),
        )


def few_sizes(size: int) -> int:
    """The smallest of a few sizes that is no smaller: four between a power of two and the next.

    What has ever other sizes is padded to these, since a library that prepares a kernel for each size (oneDNN
    for bfloat16: a millisecond and half a megabyte) would spend more time on that than on the products.
    """
    step = max(4, (1 << max(0, size - 1).bit_length()) // 8)
    return -(-size // step) * step
