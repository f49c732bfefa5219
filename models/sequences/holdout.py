"""Held-out events as cases: what was known of the user right before, and the one item to find.

Shapes: B cases, T history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Int64Array
from models.batch import EventBatch, HistoryBatch
from models.sequences.user_sequences import UserSequences


@dataclass(frozen=True, kw_only=True)
class HoldoutCases:
    """B held-out events; the user of case b had chosen [`begin_B[b]`, `end_B[b]`) of `sequences` before it.

    All int64: positions, `target_B` (catalogue rows) and `time_ms_B`.
    """

    sequences: UserSequences
    begin_B: Int64Array
    end_B: Int64Array
    target_B: Int64Array
    time_ms_B: Int64Array

    @classmethod
    def from_events(cls, known: EventBatch, held_out: EventBatch) -> "HoldoutCases":
        """One case per held-out event, in their order, as it is met in serving: with all wishes of its user
        that came before it, known ones and held-out ones.

        Where events have the same time, the known ones come first, then those before in the stream.
        """
        both = known.followed_by(held_out)
        _, user_N = np.unique(np.asarray(both.user_ids, dtype=np.str_), return_inverse=True)
        order_N = np.lexsort((both.time_ms_N, user_N))
        is_wish_N = both.is_wish_N[order_N].astype(np.int64)
        # the position among the wishes sorted alike, which are those of `sequences`
        before_N = np.cumsum(is_wish_N) - is_wish_N
        first_N = np.searchsorted(user_N[order_N], user_N[order_N])
        begin_N, end_N = np.empty_like(before_N), np.empty_like(before_N)
        begin_N[order_N] = before_N[first_N]
        end_N[order_N] = before_N
        return cls(
            sequences=UserSequences.from_events(both),
            begin_B=begin_N[len(known) :],
            end_B=end_N[len(known) :],
            target_B=held_out.item_N,
            time_ms_B=held_out.time_ms_N,
        )

    def __len__(self) -> int:
        return len(self.target_B)

    @property
    def length_B(self) -> Int64Array:
        """How many events are known of each case's user, int64."""
        return self.end_B - self.begin_B

    @property
    def user_ids(self) -> Sequence[str]:
        """Each case's user; empty where nothing is known of them."""
        user_B = np.searchsorted(self.sequences.begin_U, self.begin_B, side="right") - 1
        known = zip(user_B.tolist(), (self.length_B > 0).tolist(), strict=True)
        return [self.sequences.user_ids[user] if is_known else "" for user, is_known in known]

    def select(self, case_B: Int64Array) -> "HoldoutCases":
        """The cases at these positions (int64)."""
        return HoldoutCases(
            sequences=self.sequences,
            begin_B=self.begin_B[case_B],
            end_B=self.end_B[case_B],
            target_B=self.target_B[case_B],
            time_ms_B=self.time_ms_B[case_B],
        )

    def histories(self, max_history: int) -> HistoryBatch:
        """What the model reads: the newest events of each case's user."""
        return self.sequences.histories(np.maximum(self.begin_B, self.end_B - max_history), self.end_B)

    def of_distinct_histories(self) -> tuple["HoldoutCases", Int64Array]:
        """The first case of each history, and for every case the position (int64 [B]) of its own in that.

        A state need be computed only once for all cases that share a history.
        """
        key_B = np.where(self.length_B > 0, self.end_B, -1)
        _, first, inverse = np.unique(key_B, return_index=True, return_inverse=True)
        return self.select(first), inverse

    def known_rows(self) -> list[Int64Array]:
        """Every item in each case's history, int64 rows, also those older than what the model reads."""
        spans = zip(self.begin_B.tolist(), self.end_B.tolist(), strict=True)
        return [self.sequences.item_N[begin:end] for begin, end in spans]

    def batches(self, batch_size: int) -> Iterator[tuple[Int64Array, "HoldoutCases"]]:
        """(positions int64, cases) in batches of similar history lengths."""
        order_B = np.argsort(self.length_B, kind="stable")
        for start in range(0, len(order_B), batch_size):
            chosen = order_B[start : start + batch_size]
            yield chosen, self.select(chosen)
