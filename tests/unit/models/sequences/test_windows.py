import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.batch import ACTION_NAMES, IMPRESSION, SKIP, EventBatch
from models.sequences.growing_windows import cut_windows
from models.sequences.histories import Past
from models.sequences.user_sequences import UserSequences
from models.sequences.windows import TrainingWindows, cut_targets

CLICK = ACTION_NAMES.index("click")


def make_events(users: str, items: list[int], times: list[int]) -> EventBatch:
    n = len(items)
    return EventBatch(
        event_ids=[str(i) for i in range(n)],
        user_ids=list(users),
        item_N=np.array(items, dtype=np.int64),
        action_N=np.full(n, CLICK, dtype=np.int64),
        time_ms_N=np.array(times, dtype=np.int64),
        value_N=np.zeros(n),
    )


def test_users_are_grouped_in_time_order_and_ties_keep_stream_order():
    sequences = UserSequences.from_events(make_events("babab", [1, 2, 3, 4, 5], [9, 5, 9, 5, 1]))
    assert sequences.user_ids == ["a", "b"]
    newest = sequences.histories(np.array([3, 0, 0]), np.array([5, 0, 2]))
    assert newest.item_BT.tolist() == [[1, 3], [-1, -1], [2, 4]]
    assert newest.length_B.tolist() == [2, 0, 2]


def test_no_events_at_all():
    sequences = UserSequences.from_events(make_events("", [], []))
    assert len(TrainingWindows(sequences, 4)) == 0
    assert sequences.histories(np.array([0]), np.array([0])).length_B.tolist() == [0]


def test_windows_of_the_worked_example():
    windows = TrainingWindows(
        UserSequences.from_events(make_events("a" * 6, list(range(6)), list(range(6)))), 4
    )
    batch = windows.batch(np.array([0, 1]))
    assert batch.history.item_BT.tolist() == [[0, 1, 2, 3], [2, 3, 4, -1]]
    assert batch.target_BT.tolist() == [[1, 2, 3, 4], [-1, -1, 5, -1]]
    assert batch.first_B.tolist() == [0, -1]


@pytest.mark.parametrize("max_history", [1, 2, 3, 7])
def test_every_event_is_a_target_exactly_once(max_history):
    random = np.random.default_rng(0)
    users = "".join(random.choice(list("abcdefgh"), 60))
    events = make_events(users + "z", list(range(61)), random.integers(0, 9, 61).tolist())
    windows = TrainingWindows(UserSequences.from_events(events), max_history)
    targets: list[int] = []
    batches = list(windows.epoch(16, random))
    assert len(batches) == windows.num_batches(16)
    for batch in batches:
        assert batch.history.item_BT.shape[1] <= max_history
        for column in (batch.target_BT, batch.first_B):
            targets += column[column >= 0].tolist()
    assert sorted(targets) == list(range(61))


def test_an_epoch_depends_on_its_generator_only():
    windows = TrainingWindows(UserSequences.from_events(make_events("abcabcaa", list(range(8)), [0] * 8)), 4)
    first, again = (
        [batch.history.item_BT.tolist() for batch in windows.epoch(2, np.random.default_rng(3))]
        for _ in range(2)
    )
    assert first == again


def test_only_wishes_are_read_and_learned():
    events = make_events("a" * 5, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    events.action_N[[0, 2]] = SKIP, IMPRESSION
    batch = TrainingWindows(UserSequences.from_events(events), 4).batch(np.array([0]))
    assert batch.history.item_BT.tolist() == [[2, 4]]
    assert batch.target_BT.tolist() == [[4, 5]]
    assert batch.first_B.tolist() == [2]


def test_batches_hold_many_short_windows_or_few_long_ones():
    users = "".join(chr(ord("a") + n % 20) * (40 if n % 20 == 0 else 3) for n in range(20))
    events = make_events(users, list(range(len(users))), list(range(len(users))))
    windows = TrainingWindows(UserSequences.from_events(events), 50)
    batches = list(windows.epoch(39, np.random.default_rng(0)))
    assert len(batches) == windows.num_batches(39) == 2
    sizes = sorted((len(batch.history), batch.history.item_BT.shape[1]) for batch in batches)
    assert sizes == [(1, 39), (19, 2)]


@given(is_target=st.lists(st.booleans(), max_size=40), max_history=st.integers(1, 12))
def test_each_target_is_cut_once_and_has_half_the_history_where_there_is_one(
    is_target: list[bool], max_history: int
) -> None:
    target_N = np.nonzero(is_target)[0]
    windows = list(cut_targets(target_N, max_history))
    assert [n for _, chosen_N in windows for n in chosen_N] == target_N.tolist()
    for first, chosen_N in windows:
        assert chosen_N[-1] - first <= max_history
        assert chosen_N[0] - first >= min(int(chosen_N[0]), max_history - max(1, max_history // 2) + 1)


@given(length=st.integers(1, 30), max_history=st.integers(1, 8))
def test_a_sequence_that_is_all_new_is_cut_online_as_it_is_offline(length: int, max_history: int) -> None:
    events = make_events("a" * length, list(range(length)), list(range(length)))
    offline = TrainingWindows(UserSequences.from_events(events), max_history)
    past = Past(events.item_N, events.action_N, events.time_ms_N)
    windows = cut_windows(past, np.ones(length, dtype=np.bool_), max_history)
    assert len(windows) == len(offline)
    for w, (window, is_target_T) in enumerate(windows):
        targets = offline.batch(np.array([w]))
        predicted = [*targets.first_B.tolist(), *targets.target_BT[0].tolist()]
        assert window.item_T[is_target_T].tolist() == [row for row in predicted if row >= 0]
        assert len(window) == min(max_history, int(window.item_T[-1])) + 1, "as much context as there may be"
