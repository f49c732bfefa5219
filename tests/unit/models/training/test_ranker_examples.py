"""An example against few rivals, and popularity on the same events."""

import numpy as np
import torch

from models.batch import EventBatch, HistoryBatch
from models.candidates import Candidates
from models.sequences.holdout import HoldoutCases
from models.training.ranker_examples import NUM_RIVALS, Example, popularity_ranks

CLICK = 2


def make_example(num_candidates: int, target: int) -> Example:
    row_M = np.arange(100, 100 + num_candidates)
    return Example(
        history=HistoryBatch.from_lists([[1]], [[CLICK]], [[1]], max_history=5),
        candidates=Candidates(
            row_M=row_M,
            source_M=np.ones_like(row_M),
            beam_M=row_M.astype(np.float32),
            dense_M=row_M.astype(np.float32),
        ),
        features_MF=row_M[:, None].astype(np.float32),
        state_1D=torch.zeros(1, 4),
        target=target,
        action_1A=torch.zeros(1, 3),
    )


def test_a_sampled_example_has_its_item_first_and_rivals_with_what_is_theirs():
    sampled = make_example(180, 17).sampled(np.random.default_rng(0))
    row_M = sampled.candidates.row_M
    assert sampled.target == 0
    assert row_M[0] == 117
    assert len(set(row_M.tolist())) == len(row_M) == NUM_RIVALS + 1
    assert np.array_equal(sampled.candidates.beam_M, row_M)
    assert np.array_equal(sampled.features_MF[:, 0], row_M)


def test_few_candidates_all_stay():
    assert len(make_example(5, 4).sampled(np.random.default_rng(0))) == 5


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
    assert popularity_ranks(cases, known, held_out).tolist() == [0, -1, 1]
