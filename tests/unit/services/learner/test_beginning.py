"""What a release's offsets are worth on the topic that is there."""

import pytest

from services.learner.beginning import within_topic


@pytest.mark.parametrize(
    ("offsets", "end", "taken"),
    [
        ({"t/0": 3, "t/1": 4}, {"t/0": 3, "t/1": 9}, {"t/0": 3, "t/1": 4}),
        # the tail is lost, or the topic is another of this name
        ({"t/0": 1_000_000}, {"t/0": 3, "t/1": 9}, {"t/0": 3}),
        ({"t/0": 5}, {"t/0": 0}, {"t/0": 0}),
        # a partition of a topic that had more of them
        ({"t/0": 3, "t/7": 2}, {"t/0": 3}, {"t/0": 3}),
        ({}, {"t/0": 3}, {}),
    ],
)
def test_nothing_is_waited_for_that_the_topic_does_not_have(
    offsets: dict[str, int], end: dict[str, int], taken: dict[str, int]
) -> None:
    assert within_topic(offsets, end) == taken
