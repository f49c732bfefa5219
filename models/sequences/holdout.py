"""Held-out events as cases: what was known of the user, and the one item to find.

Shapes: B cases, T history.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.arrays import Int64Array
from models.batch import EventBatch, HistoryBatch
from models.sequences.user_sequences import UserSequences


@dataclass(frozen=True, kw_only=True)
class HoldoutCases:
    """B held-out events of users whose known events are in `sequences` (`user_B` -1: no known event).

    `user_B`, `target_B` (catalogue rows) and `time_ms_B` are int64.
    """

    sequences: UserSequences
    user_B: Int64Array
    target_B: Int64Array
    time_ms_B: Int64Array

    @classmethod
    def from_events(cls, known: EventBatch, held_out: EventBatch) -> "HoldoutCases":
        """One case per held-out event, in their order; each with all known events of its user."""
        sequences = UserSequences.from_events(known)
        return cls(
            sequences=sequences,
            user_B=sequences.lookup(held_out.user_ids),
            target_B=held_out.item_N,
            time_ms_B=held_out.time_ms_N,
        )

    def __len__(self) -> int:
        return len(self.target_B)

    def select(self, case_B: Int64Array) -> "HoldoutCases":
        """The cases at these positions (int64)."""
        return HoldoutCases(
            sequences=self.sequences,
            user_B=self.user_B[case_B],
            target_B=self.target_B[case_B],
            time_ms_B=self.time_ms_B[case_B],
        )

    def histories(self, max_history: int) -> HistoryBatch:
        """What the model reads: the newest events of each case's user."""
        return self.sequences.latest(self.user_B, max_history)

    def of_distinct_users(self) -> tuple["HoldoutCases", Int64Array]:
        """The first case of each user, and for every case the position (int64 [B]) of its user's in that.

        Cases of one user share a history, and so a state that need be computed only once.
        """
        _, first, inverse = np.unique(self.user_B, return_index=True, return_inverse=True)
        return self.select(first), inverse

    def known_rows(self) -> list[Int64Array]:
        """Every item in each case's history, int64 rows, also those older than what the model reads."""
        begin_B, end_B = self.sequences.span(self.user_B)
        return [self.sequences.item_N[begin:end] for begin, end in zip(begin_B, end_B, strict=True)]

    def batches(self, batch_size: int) -> Iterator[tuple[Int64Array, "HoldoutCases"]]:
        """(positions int64, cases) in batches of similar history lengths."""
        begin_B, end_B = self.sequences.span(self.user_B)
        order_B = np.argsort(end_B - begin_B, kind="stable")
        for start in range(0, len(order_B), batch_size):
            chosen = order_B[start : start + batch_size]
            yield chosen, self.select(chosen)
