"""A micro-batch seen user by user: what was known before, and what is new.

Within a batch too, an event's past is only what came strictly before it in stream order.
"""

from dataclasses import dataclass

import numpy as np

from models.batch import EventBatch
from models.statistics import hash_id
from models.user_histories import Past, UserHistories


@dataclass(frozen=True)
class Story:
    """One user's events up to the end of a batch; those from `num_known` on are the batch's."""

    user: int
    past: Past
    num_known: int

    @property
    def new(self) -> Past:
        """The batch's events."""
        return self.past.cut(self.num_known, len(self.past))

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
        known = histories.get(user)
        index_N = np.asarray(at)
        new = Past(events.item_N[index_N], events.action_N[index_N], events.time_ms_N[index_N])
        story = Story(user, known.followed_by(new), len(known))
        stories.append(story)
        for end, n in enumerate(at, start=len(known)):
            past_of[n] = story.past.cut(max(0, end - histories.max_events), end)
    return stories, [past_of[n] for n in range(len(events))]
