"""Wishes grouped into one sequence per user.

Owns the order inside a user: time, then stream order.

Shapes: N events, U users, B users of a batch, T history.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.batch import EventBatch, HistoryBatch


@dataclass(frozen=True, kw_only=True)
class UserSequences:
    """N wishes sorted by user, each user's oldest first; user u owns [`begin_U[u]`, `begin_U[u + 1]`).

    All columns are int64, times in ms; `begin_U` has one entry more than there are users.
    """

    user_ids: Sequence[str]
    begin_U: Int64Array
    item_N: Int64Array
    action_N: Int64Array
    time_ms_N: Int64Array

    @classmethod
    def from_events(cls, events: EventBatch) -> "UserSequences":
        """Groups the wishes by user; equal times keep their stream order. Users come sorted by id.

        What was shown or turned down is left out: the model reads what people chose.
        """
        events = events.select(events.is_wish_N)
        users, user_N = np.unique(np.asarray(events.user_ids, dtype=np.str_), return_inverse=True)
        order_N = np.lexsort((events.time_ms_N, user_N))
        counts_U = np.bincount(user_N, minlength=len(users))
        return cls(
            user_ids=users.tolist(),
            begin_U=np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64),
            item_N=events.item_N[order_N],
            action_N=events.action_N[order_N],
            time_ms_N=events.time_ms_N[order_N],
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    def histories(self, begin_B: Int64Array, end_B: Int64Array) -> HistoryBatch:
        """The events of B spans (int64 [B] each) as a padded batch."""
        length_B = end_B - begin_B
        step_T = np.arange(max(1, int(length_B.max(initial=0))))
        valid_BT = step_T < length_B[:, None]
        at_BT = np.where(valid_BT, begin_B[:, None] + step_T, 0)

        def padded(column_N: Int64Array, fill: int) -> Tensor:
            if not len(column_N):
                return torch.full(at_BT.shape, fill, dtype=torch.int64)
            return torch.from_numpy(np.where(valid_BT, column_N[at_BT], fill))

        return HistoryBatch(
            item_BT=padded(self.item_N, -1),
            action_BT=padded(self.action_N, 0),
            time_ms_BT=padded(self.time_ms_N, 0),
            length_B=torch.from_numpy(length_B),
        )
