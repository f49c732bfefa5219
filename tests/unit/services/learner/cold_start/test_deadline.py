"""One limit for several stages, and the stage that can be seen to need more than that."""

from collections.abc import Mapping

import pytest

from services.learner.cold_start.deadline import Deadline
from services.learner.cold_start.train import TooLittleTime, watched


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_stage_that_ends_early_leaves_its_time_to_the_next() -> None:
    clock = Clock()
    deadline = Deadline(100.0, clock)
    first = deadline.until(0.5, reserve_s=10.0)
    assert first() == 0.0
    clock.now_s += 9.0
    assert first() == pytest.approx(9 / 45)
    second = deadline.until(0.5, reserve_s=10.0)
    clock.now_s += 18.0
    assert second() == pytest.approx(0.5)
    clock.now_s += 100.0
    assert first() == second() == deadline.until(0.9)() == 1.0
    assert deadline.used_s == 127.0


def test_without_a_limit_no_time_is_used_up() -> None:
    clock = Clock()
    share = Deadline(None, clock).until(0.5)
    clock.now_s += 1e9
    assert share() == 0.0


def ignore(stage: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
    """No progress is shown."""


def test_what_cannot_be_cut_ends_when_it_is_plain_that_it_takes_too_long() -> None:
    clock = Clock()
    watch = watched(ignore, Deadline(60.0, clock))
    clock.now_s += 10.0  # a model is loaded: this says nothing of the pace
    watch("embed items", 32, 400, {})
    clock.now_s += 1.0
    watch("embed items", 64, 400, {})
    clock.now_s += 10.0
    with pytest.raises(TooLittleTime, match=r"embed items \(400\).*raise --max-minutes"):
        watch("embed items", 96, 400, {})


def test_the_rest_of_a_deadline_is_one_of_its_own() -> None:
    now_s = [0.0]
    deadline = Deadline(100.0, lambda: now_s[0])
    now_s[0] = 60.0
    rest = deadline.rest()
    assert rest.max_seconds == 40.0
    assert rest.used_s == 0.0
    now_s[0] = 300.0
    assert deadline.rest().max_seconds == 1.0
    assert Deadline(None).rest().max_seconds is None
