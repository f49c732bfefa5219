"""What a reader keeps between connections: places that are still there, and pauses that grow."""

import itertools

from kafka import TopicPartition

from streaming.clients.places import Backoff, name_of, settle

PARTITION = TopicPartition("interactions", 3)


def settled(wanted: int | None, *, hidden_to: int = 0) -> tuple[int, dict[str, int]]:
    """The place in a partition that has the offsets 10 to 20, and what was said to have moved back."""
    offsets = {} if wanted is None else {"interactions/3": wanted}
    rewound = settle(
        offsets,
        {PARTITION: 10},
        {PARTITION: 20},
        stage="test",
        is_hidden=lambda partition, offset: 20 < offset <= hidden_to,
    )
    return offsets[name_of(PARTITION)], rewound


def test_a_place_that_is_there_stays_and_a_new_reader_begins_at_the_first() -> None:
    assert settled(None) == (10, {})
    assert [settled(wanted) for wanted in (10, 15, 20)] == [(10, {}), (15, {}), (20, {})]


def test_a_place_that_is_gone_moves_to_the_first_and_only_one_moved_back_is_rewound() -> None:
    assert settled(4) == (10, {})
    assert settled(21) == (10, {"interactions/3": 10})


def test_a_place_that_an_open_transaction_hides_stays() -> None:
    assert settled(25, hidden_to=25) == (25, {})
    assert settled(26, hidden_to=25) == (10, {"interactions/3": 10})


def test_pauses_double_up_to_five_seconds_and_begin_anew_after_success() -> None:
    backoff = Backoff()
    pauses = [backoff.next_s() for _ in range(20)]
    longest = [min(5.0, 0.2 * 2**n) for n in range(20)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(itertools.islice(pauses, 10, None))) > 1, "readers that failed together try together"
    backoff.reset()
    assert backoff.next_s() <= 0.2
