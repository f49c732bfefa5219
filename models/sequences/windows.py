"""The windows of users' sequences that offline training reads.

Owns which position is supervised by which event. Knows nothing of models or losses.

Shapes: W windows, B windows of a batch, T history.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.arrays import Int64Array
from models.batch import HistoryBatch, few_sizes
from models.sequences.user_sequences import UserSequences

LENGTH_BLUR = 0.25


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """B windows: `target_BT` int64 is the row that follows each position, -1 where none is supervised.

    `first_B` int64: the user's very first item, to be predicted from the empty history; -1 in windows that do
    not begin a user's sequence.
    """

    history: HistoryBatch
    target_BT: Tensor
    first_B: Tensor

    @property
    def num_targets(self) -> int:
        """How many items are to be predicted, first ones included."""
        return int((self.target_BT >= 0).sum()) + int((self.first_B >= 0).sum())

    def in_few_sizes(self, max_history: int) -> "TrainingBatch":
        """The same, padded to `models.batch.few_sizes`; no wider than `max_history` if it was not before."""
        num, width = self.target_BT.shape
        more = few_sizes(num) - num, min(few_sizes(width), max(width, max_history)) - width
        return TrainingBatch(
            history=self.history.padded(num + more[0], width + more[1]),
            target_BT=functional.pad(self.target_BT, (0, more[1], 0, more[0]), value=-1),
            first_B=functional.pad(self.first_B, (0, more[0]), value=-1),
        )


def cut_targets(target_N: Int64Array, max_history: int) -> Iterator[tuple[int, Int64Array]]:
    """The windows that predict each target once: (first input, targets) of each, in positions of a sequence.

    `target_N` int64: ascending positions of what is to be predicted. A window's inputs are the events from
    its first to the one before its last target, at most `max_history`. Before the first target there are at
    least half as many, or all there are. Windows overlap; the overlap is context only. With `max_history` 4
    and six events a..f, all of them targets: [a b c d] predicting a b c d e, then [c d e] predicting f.
    """
    num_fresh = max(1, max_history // 2)
    while len(target_N):
        begin = max(0, int(target_N[0]) - 1 - (max_history - num_fresh))
        chosen_N = target_N[target_N <= begin + max_history]
        yield begin, chosen_N
        target_N = target_N[len(chosen_N) :]


class TrainingWindows:
    """Every user's sequence cut into windows of at most `max_history` inputs, each event a target once."""

    def __init__(self, sequences: UserSequences, max_history: int) -> None:
        self._sequences = sequences
        begin, end, first = [], [], []
        for user_begin, length in zip(sequences.begin_U, np.diff(sequences.begin_U), strict=False):
            for start, target_N in cut_targets(np.arange(length), max_history):
                begin.append(user_begin + start)
                end.append(user_begin + target_N[-1])
                first.append(user_begin + max(0, target_N[0] - 1))
        self.begin_W = np.array(begin, dtype=np.int64)
        self.end_W = np.array(end, dtype=np.int64)
        self._supervised_W = np.array(first, dtype=np.int64)
        self._opening_W = np.isin(self.begin_W, sequences.begin_U[:-1])

    def __len__(self) -> int:
        return len(self.begin_W)

    def batch(self, window_B: Int64Array) -> TrainingBatch:
        """The windows at these positions (int64 [B])."""
        begin_B, end_B = self.begin_W[window_B], self.end_W[window_B]
        history = self._sequences.histories(begin_B, end_B)
        at_BT = begin_B[:, None] + np.arange(history.item_BT.shape[1])
        supervised_BT = (at_BT >= self._supervised_W[window_B][:, None]) & (at_BT < end_B[:, None])
        item_N = self._sequences.item_N
        target_BT = np.where(supervised_BT, item_N[np.where(supervised_BT, at_BT + 1, 0)], -1)
        first_B = np.where(self._opening_W[window_B], item_N[begin_B], -1)
        return TrainingBatch(
            history=history, target_BT=torch.from_numpy(target_BT), first_B=torch.from_numpy(first_B)
        )

    def epoch(self, batch_positions: int, random: np.random.Generator) -> Iterator[TrainingBatch]:
        """All windows once, in `num_batches` batches of about `batch_positions` inputs and similar lengths.

        A batch holds many short windows or few long ones, so that every step costs and teaches about the
        same, in a bounded amount of memory. Windows are ordered by their length, blurred by up to
        `LENGTH_BLUR` so that a batch has other members in every epoch; batches come in random order.
        """
        length_W = np.maximum(self.end_W - self.begin_W, 1)
        order_W = np.argsort(length_W * random.uniform(1.0, 1.0 + LENGTH_BLUR, len(self)), kind="stable")
        twice_middle_W = 2 * np.cumsum(length_W[order_W]) - length_W[order_W]
        batch_W = twice_middle_W * self.num_batches(batch_positions) // max(1, 2 * int(length_W.sum()))
        batches = np.split(order_W, np.nonzero(np.diff(batch_W))[0] + 1) if len(self) else []
        for index in random.permutation(len(batches)):
            yield self.batch(batches[index])

    def num_batches(self, batch_positions: int) -> int:
        """How many batches one epoch yields (fewer only where one window is longer than a batch)."""
        return -(-int(np.maximum(self.end_W - self.begin_W, 1).sum()) // batch_positions)
