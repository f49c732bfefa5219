"""Popularity on the events that a ranker is fitted on."""

import numpy as np

from models.batch import EventBatch
from models.sequences.holdout import HoldoutCases
from models.training.ranker_examples import windowed_popularity_ranks

CLICK = 2


def events(rows: list[int], users: list[str], first_ms: int) -> EventBatch:
    return EventBatch(
        event_ids=[f"{first_ms}-{n}" for n in range(len(rows))],
        user_ids=users,
        item_N=np.array(rows, dtype=np.int64),
        action_N=np.full(len(rows), CLICK),
        time_ms_N=np.arange(first_ms, first_ms + len(rows)),
        value_N=np.zeros(len(rows)),
    )


def test_popularity_knows_what_was_before_each_event_and_leaves_out_the_users_own():
    known = events([3, 3, 5], ["a", "b", "c"], 10)
    held_out = events([5, 7, 7], ["a", "c", "b"], 20)
    cases = HoldoutCases.from_events(known, held_out)
    # a: 3 is their own, so 5 is first; c: 7 was never seen; b: 5 was chosen twice by now, 7 once
    assert windowed_popularity_ranks(cases, known, held_out).tolist() == [0, -1, 1]


def test_what_a_user_had_before_is_a_miss():
    known = events([3, 3, 5], ["a", "b", "c"], 10)
    held_out = events([3, 5], ["a", "b"], 20)
    cases = HoldoutCases.from_events(known, held_out)
    assert windowed_popularity_ranks(cases, known, held_out).tolist() == [-1, 0]
