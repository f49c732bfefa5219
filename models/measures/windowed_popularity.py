"""Windowed popularity: the baseline that a model has to beat on the same events.

Shapes: N items.
"""

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array


class WindowedPopularity:
    """Counts of the newest `window` events; items are rows."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._ring = np.full(window, -1, dtype=np.int64)
        self._num_events = 0
        self._count_N = np.zeros(1024, dtype=np.int64)

    def add(self, row: int) -> None:
        """Takes in one more event, and drops the oldest one of a full window."""
        if row >= len(self._count_N):
            self._count_N = np.concatenate([self._count_N, np.zeros(max(row, len(self._count_N)), np.int64)])
        place = self._num_events % self.window
        if self._ring[place] >= 0:
            self._count_N[self._ring[place]] -= 1
        self._ring[place] = row
        self._count_N[row] += 1
        self._num_events += 1

    def rank(self, row: int, exclude: Int64Array) -> int:
        """The 0-based rank of a row among those not in `exclude` (int64 rows, each >= 0), ties by row; -1 if
        the window does not hold it."""
        if row >= len(self._count_N) or self._count_N[row] == 0:
            return -1
        count = self._count_N[row]
        better_N = self._count_N > count
        better_N[:row] |= self._count_N[:row] == count
        better_N[exclude[exclude < len(better_N)]] = False
        return int(better_N.sum())

    def state(self) -> dict[str, Tensor]:
        """The rows of the window, int64, oldest first."""
        kept = min(self._num_events, self.window)
        ring = np.roll(self._ring, -(self._num_events % self.window))[self.window - kept :]
        return {"row": torch.from_numpy(ring.copy())}

    @classmethod
    def from_state(cls, window: int, tensors: dict[str, Tensor]) -> "WindowedPopularity":
        """The window that `state` described (int64 rows), cut to its newest `window`."""
        popularity = cls(window)
        for row in tensors["row"].tolist():
            popularity.add(row)
        return popularity
