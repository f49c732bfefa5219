"""What popularity is counted from, and what it may not answer."""

from models.decoding.popularity_ranks import popularity_ranks
from models.sequences.holdout import HoldoutCases
from tests.unit.models.sequence_events import make_events


def test_it_counts_what_is_known_and_leaves_out_what_the_user_had():
    known = make_events([[0, 1], [0, 2], [0, 2], [3]])
    held_out = make_events([[2], [1], [1], [0]], after=len(known))
    ranks = popularity_ranks(HoldoutCases.from_events(known, held_out), known, num_items=5)
    # u0 had 0 and 1: 2 is first. u1 and u2 had 0 and 2: of 1 and 3, with one event each, half a place.
    # u3 had 3: 0 is first of all
    assert ranks.tolist() == [0, 0, 0, 0]
    assert popularity_ranks(HoldoutCases.from_events(known, known), known, 5).tolist() == [-1] * 7
