"""What the learner remembers: dedupe window, histories, reservoir, stories and windows."""

import numpy as np
import pytest

from models.arrays import Int64Array
from models.batch import ACTION_NAMES, EventBatch
from models.online.reservoir import Reservoir
from models.sequences.dedupe import DedupeWindow
from models.sequences.growing_windows import cut_windows, group_by_length, training_batch, whole_window
from models.sequences.histories import Past, UserHistories, pad_pasts
from models.sequences.stories import tell

CLICK = ACTION_NAMES.index("click")


def past(*rows: int, action: int = CLICK) -> Past:
    item_T: Int64Array = np.array(rows, dtype=np.int64)
    return Past(item_T, np.full(len(rows), action), 1_000 * item_T)


def test_dedupe_remembers_exactly_the_newest() -> None:
    window = DedupeWindow(8)
    kept: list[str] = []
    random = np.random.default_rng(0)
    for _ in range(60):
        ids = [f"e{random.integers(25)}" for _ in range(random.integers(1, 12))]
        fresh = window.fresh(ids)
        expected = [event_id not in kept and event_id not in ids[:i] for i, event_id in enumerate(ids)]
        assert fresh.tolist() == expected
        new = [event_id for event_id, is_fresh in zip(ids, fresh, strict=True) if is_fresh]
        window.add_many(new)
        kept = (kept + new)[-8:]


def test_dedupe_of_size_zero_remembers_nothing() -> None:
    window = DedupeWindow(0)
    window.add_many(["a"])
    assert window.fresh(["a", "a"]).tolist() == [True, True]


def test_histories_keep_the_newest_events() -> None:
    histories = UserHistories(max_events=3)
    for row in range(10):
        histories.add(1, past(row))
        histories.add(-2, past(row, row))
    assert histories.get(1).item_T.tolist() == [7, 8, 9]
    assert histories.get(-2).time_ms_T.tolist() == [8000, 9000, 9000]
    assert len(histories.get(5)) == 0
    assert len(histories) == 2


def test_a_late_event_stands_at_its_place_by_time() -> None:
    histories = UserHistories(max_events=3)
    for row in (5, 1, 4, 2, 3):
        histories.add(1, past(row))
    assert histories.get(1).item_T.tolist() == [3, 4, 5]
    at_once = UserHistories(max_events=3)
    at_once.add(1, past(5, 1, 4, 2, 3))
    assert at_once.get(1).item_T.tolist() == [3, 4, 5]
    same_time = Past(np.array([7, 8]), np.full(2, CLICK), np.array([4_000, 4_000]))
    histories.add(1, same_time)
    assert histories.get(1).item_T.tolist() == [7, 8, 5]


def test_reservoir_is_a_uniform_sample() -> None:
    random = np.random.default_rng(0)
    counts = np.zeros(40)
    for _ in range(400):
        reservoir = Reservoir(8)
        for row in range(40):
            reservoir.offer(past(row, row), random)
        for kept in reservoir.draw(200, random):
            counts[kept.item_T[0]] += 1
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.4 * counts.mean()
    assert sum(len(kept) - 1 for kept in reservoir.draw(5, random)) == 5
    assert Reservoir(3).draw(10, random) == []


def test_stories_are_causal_inside_a_batch() -> None:
    histories = UserHistories(max_events=3)
    long_ago = Past(np.array([9]), np.array([CLICK]), np.array([-5]))
    histories.add(tell(make_events(["a"], [9]), histories)[0][0].user, long_ago)
    events = make_events(["a", "b", "a", "a", "b"], [1, 2, 3, 4, 5])
    stories, pasts = tell(events, histories)
    assert [one.item_T.tolist() for one in pasts] == [[9], [], [9, 1], [9, 1, 3], [2]]
    assert [story.past.item_T.tolist() for story in stories] == [[9, 1, 3, 4], [2, 5]]
    assert [story.new.item_T.tolist() for story in stories] == [[1, 3, 4], [2, 5]]


def test_a_late_events_past_is_what_came_before_it_by_time() -> None:
    histories = UserHistories(max_events=9)
    events = make_events(["a", "a", "a"], [30, 10, 20])
    events.time_ms_N[:] = [30, 10, 20]
    histories.add(tell(events, histories)[0][0].user, Past(*(np.array([n]) for n in (15, CLICK, 15))))
    [story], pasts = tell(events, histories)
    assert [one.item_T.tolist() for one in pasts] == [[10, 15, 20], [], [10, 15]]
    assert story.past.item_T.tolist() == [10, 15, 20, 30]
    assert story.new.item_T.tolist() == [10, 20, 30]
    assert story.is_new_T.tolist() == [True, False, True, True]


def make_events(users: list[str], rows: list[int]) -> EventBatch:
    return EventBatch(
        event_ids=[f"e{n}" for n in range(len(rows))],
        user_ids=users,
        item_N=np.array(rows, dtype=np.int64),
        action_N=np.full(len(rows), CLICK),
        time_ms_N=np.arange(len(rows), dtype=np.int64),
        value_N=np.zeros(len(rows)),
    )


@pytest.mark.parametrize(("num_known", "length"), [(0, 1), (0, 9), (3, 6), (5, 30), (29, 30), (0, 4)])
def test_windows_predict_each_new_event_once(num_known: int, length: int) -> None:
    story = past(*range(100, 100 + length))
    is_new_T = np.arange(length) >= num_known
    predicted: list[int] = []
    for window, is_target_T in cut_windows(story, is_new_T, max_history=4):
        assert len(window) <= 5
        predicted += window.item_T[is_target_T].tolist()
        first = int(is_target_T.argmax())
        assert first >= min(2, int(window.item_T[first]) - 100)  # context, where there is some
    assert predicted == list(range(100 + num_known, 100 + length))


def test_windows_of_late_events_have_their_own_context() -> None:
    is_new_T = np.array([False, True, False, False, False, True])
    windows = cut_windows(past(0, 1, 2, 3, 4, 5), is_new_T, max_history=4)
    assert [window.item_T.tolist() for window, _ in windows] == [[0, 1], [1, 2, 3, 4, 5]]
    assert [window.item_T[at].tolist() for window, at in windows] == [[1], [5]]


def test_training_batch_masks_context() -> None:
    masked = (past(1, 2, 3, 4), np.array([False, False, False, True]))
    opening = (past(7), np.array([True]))
    batch = training_batch([masked, opening, (past(8, 9), np.array([True, True]))], max_history=5)
    assert batch.history.item_BT.tolist() == [[1, 2, 3], [-1, -1, -1], [8, -1, -1]]
    assert batch.history.length_B.tolist() == [3, 0, 1]
    assert batch.target_BT.tolist() == [[-1, -1, 4], [-1, -1, -1], [9, -1, -1]]
    assert batch.first_B.tolist() == [-1, 7, 8]


def test_pad_keeps_the_newest() -> None:
    history = pad_pasts([past(1, 2, 3), past()], max_history=2)
    assert history.item_BT.tolist() == [[2, 3], [-1, -1]]


def test_groups_spare_padding_only_where_it_pays() -> None:
    windows = [whole_window(past(*range(length))) for length in (3, 40, 2, 4, 3, 2)]
    assert [len(group) for group in group_by_length(windows)] == [6]
    assert [len(group) for group in group_by_length(windows * 2)] == [10, 2]
    assert group_by_length([]) == []
