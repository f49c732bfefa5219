"""The learner's own copy of every user's newest events, by event time.

Equal times stand in stream order. Users are kept under a 64-bit hash of their id. Knows rows and action
numbers, no items or models.

Shapes: U users, N events of all users together, T history.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.batch import HistoryBatch


@dataclass(frozen=True)
class Past:
    """Events of one user, oldest first: rows, actions and times (ms), each int64 [T]."""

    item_T: Int64Array
    action_T: Int64Array
    time_ms_T: Int64Array

    def __len__(self) -> int:
        return len(self.item_T)

    def cut(self, begin: int, end: int) -> "Past":
        """The events [begin, end)."""
        return Past(self.item_T[begin:end], self.action_T[begin:end], self.time_ms_T[begin:end])

    def with_new(self, new: "Past") -> "tuple[Past, npt.NDArray[np.bool_]]":
        """These events and `new` ones by time, and which of them are the new ones, bool.

        Where times are equal, these come first, then `new` in its order.
        """
        time_ms_T = np.concatenate([self.time_ms_T, new.time_ms_T])
        order_T = np.argsort(time_ms_T, kind="stable")
        both = Past(
            np.concatenate([self.item_T, new.item_T])[order_T],
            np.concatenate([self.action_T, new.action_T])[order_T],
            time_ms_T[order_T],
        )
        return both, order_T >= len(self)


def pad_pasts(pasts: Sequence[Past], max_history: int) -> HistoryBatch:
    """The newest `max_history` events of each, padded to a batch."""
    return HistoryBatch.from_lists(
        [past.item_T.tolist() for past in pasts],
        [past.action_T.tolist() for past in pasts],
        [past.time_ms_T.tolist() for past in pasts],
        max_history=max_history,
    )


class _Log:
    """One user's events in typed arrays (4 + 1 + 8 bytes an event), cut in batches."""

    __slots__ = ("actions", "items", "times")

    def __init__(self) -> None:
        self.items, self.actions, self.times = array("i"), array("b"), array("q")


class UserHistories:
    """The newest `max_events` events of each user."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self._logs: dict[int, _Log] = {}

    def __len__(self) -> int:
        return len(self._logs)

    def get(self, user: int) -> Past:
        """What is known of the user with this hash; empty for a stranger."""
        log = self._logs.get(user)
        if log is None:
            nothing = np.empty(0, dtype=np.int64)
            return Past(nothing, nothing, nothing)
        newest = slice(-self.max_events, None)
        return Past(
            np.asarray(log.items[newest], dtype=np.int64),
            np.asarray(log.actions[newest], dtype=np.int64),
            np.asarray(log.times[newest], dtype=np.int64),
        )

    def add(self, user: int, new: Past) -> None:
        """Adds events, each at its place by time."""
        log = self._logs.setdefault(user, _Log())
        times = new.time_ms_T.tolist()
        if times != sorted(times) or (times and log.times and times[0] < log.times[-1]):
            new, _ = self.get(user).with_new(new)
            log = self._logs[user] = _Log()
        log.items.extend(new.item_T.tolist())
        log.actions.extend(new.action_T.tolist())
        log.times.extend(new.time_ms_T.tolist())
        if len(log.items) > 2 * self.max_events:
            surplus = len(log.items) - self.max_events
            for column in (log.items, log.actions, log.times):
                del column[:surplus]

    def state(self) -> dict[str, Tensor]:
        """Hashes and lengths by user, int64, and the `flat_columns` of all events, user by user."""
        pasts = [self.get(user) for user in self._logs]
        return {
            "user": torch.tensor(list(self._logs), dtype=torch.int64),
            "length": torch.tensor([len(past) for past in pasts], dtype=torch.int64),
            **flat_columns(pasts),
        }

    @classmethod
    def from_state(cls, max_events: int, tensors: dict[str, Tensor]) -> "UserHistories":
        """The histories that `state` described (same names and dtypes)."""
        histories = cls(max_events)
        pasts = split_columns(tensors, tensors["length"].tolist())
        for user, past in zip(tensors["user"].tolist(), pasts, strict=True):
            histories.add(user, past)
        return histories


def flat_columns(pasts: Sequence[Past]) -> dict[str, Tensor]:
    """Pasts one after another: item int32, action int8, time_ms int64, each [N]."""
    none = [np.empty(0, dtype=np.int64)]
    return {
        "item": torch.from_numpy(np.concatenate([past.item_T for past in pasts] or none).astype(np.int32)),
        "action": torch.from_numpy(np.concatenate([past.action_T for past in pasts] or none).astype(np.int8)),
        "time_ms": torch.from_numpy(np.concatenate([past.time_ms_T for past in pasts] or none)),
    }


def split_columns(tensors: dict[str, Tensor], lengths: Sequence[int]) -> list[Past]:
    """The pasts that `flat_columns` put one after another, as int64 columns."""
    whole = Past(*(tensors[name].numpy().astype(np.int64) for name in ("item", "action", "time_ms")))
    ends = np.cumsum(lengths, dtype=np.int64)
    return [whole.cut(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]
