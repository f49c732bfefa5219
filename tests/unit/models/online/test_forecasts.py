"""Which events are predicted."""

from itertools import pairwise

import numpy as np

from models.batch import EventBatch
from models.online.forecasts import INCLUDE_SEEN_EVERY, choose
from models.sequences.histories import Past, UserHistories

NUM_EVENTS = 100
PAST = Past(*(np.array([1_000], dtype=np.int64) for _ in range(3)))


def chosen(begin: int, end: int) -> list[tuple[int, bool]]:
    """Of events [begin, end) of a stream: the place in the stream of those that are predicted."""
    number_N = np.arange(begin, end)
    events = EventBatch(
        event_ids=[str(n) for n in number_N],
        user_ids=["u"] * len(number_N),
        item_N=number_N,
        action_N=np.full(len(number_N), 2),
        time_ms_N=number_N,
        value_N=np.zeros(len(number_N)),
    )
    questions = choose(events, [PAST] * len(number_N), UserHistories(10), 3, begin)
    return [(begin + question.position, question.include_seen) for question in questions]


def test_every_third_event_is_predicted_however_the_stream_is_cut() -> None:
    whole = chosen(0, NUM_EVENTS)
    assert [place for place, _ in whole] == list(range(0, NUM_EVENTS, 3))
    assert sum(seen for _, seen in whole) == len(whole) // INCLUDE_SEEN_EVERY
    ends = [0, 1, 1, 2, 9, 10, 40, 99, NUM_EVENTS]
    parts = [chosen(begin, end) for begin, end in pairwise(ends)]
    assert [one for part in parts for one in part] == whole
