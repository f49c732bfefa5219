"""The wishes of a micro-batch seen user by user: what was known before, and what is new, by time.

Within a batch too, an event's past is only what came before it: by event time, and of equal times by its
place in the stream.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.batch import EventBatch
from models.sequences.dedupe import hash_id
from models.sequences.histories import Past, UserHistories


@dataclass(frozen=True)
class Story:
    """One user's wishes up to the end of a batch; `is_new_T` are the batch's."""

    user: int
    past: Past
    is_new_T: npt.NDArray[np.bool_]

    @property
    def new(self) -> Past:
        """The batch's events."""
        at = self.is_new_T
        return Past(self.past.item_T[at], self.past.action_T[at], self.past.time_ms_T[at])

    def newest(self, num_events: int) -> Past:
        """The last events."""
        return self.past.cut(max(0, len(self.past) - num_events), len(self.past))


def tell(events: EventBatch, histories: UserHistories) -> tuple[list[Story], list[Past]]:
    """The story of each user of the batch, in order of appearance, and each event's past.

    Histories are read and not changed.
    """
    positions: dict[int, list[int]] = {}
    for n, user_id in enumerate(events.user_ids):
        positions.setdefault(hash_id(user_id), []).append(n)
    stories: list[Story] = []
    past_of: dict[int, Past] = {}
    for user, at in positions.items():
        index_N = np.asarray(at)
        new = Past(events.item_N[index_N], events.action_N[index_N], events.time_ms_N[index_N])
        past, is_new_T = histories.get(user).with_new(new)
        stories.append(Story(user, past, is_new_T))
        by_time = index_N[np.argsort(new.time_ms_T, kind="stable")]
        for end, n in zip(np.nonzero(is_new_T)[0].tolist(), by_time.tolist(), strict=True):
            past_of[n] = past.cut(max(0, end - histories.max_events), end)
    return stories, [past_of[n] for n in range(len(events))]
