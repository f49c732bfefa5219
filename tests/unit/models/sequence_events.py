"""Events of users who had their items one after the other."""

import numpy as np

from models.batch import EventBatch


def make_events(sequences: list[list[int]], *, after: int = 0) -> EventBatch:
    users = [f"u{u}" for u, items in enumerate(sequences) for _ in items]
    return EventBatch(
        event_ids=[str(n) for n in range(len(users))],
        user_ids=users,
        item_N=np.array([item for items in sequences for item in items], dtype=np.int64),
        action_N=np.full(len(users), 2, dtype=np.int64),
        time_ms_N=np.arange(after + 1, after + len(users) + 1, dtype=np.int64) * 1_000,
        value_N=np.zeros(len(users)),
    )
