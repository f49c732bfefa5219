"""Commands run on the owner's thread, in order; none waits for ever."""

import pytest

from services.errors import NotReady
from services.learner.commands import CommandQueue
from services.learner.position import DeferredRecord, LearnerPosition


def test_results_and_errors_go_to_the_caller() -> None:
    commands = CommandQueue()
    order: list[str] = []

    def fail() -> None:
        raise KeyError("no")

    first = commands.submit(lambda: order.append("first") or 1)
    second = commands.submit(fail)
    assert not first.done()
    commands.run_waiting()
    assert first.result() == 1
    with pytest.raises(KeyError):
        second.result()
    assert order == ["first"]


def test_nothing_waits_on_a_closed_queue() -> None:
    commands = CommandQueue()
    before = commands.submit(lambda: 1)
    commands.close()
    after = commands.submit(lambda: 1)
    for future in (before, after):
        with pytest.raises(NotReady):
            future.result(timeout=0)


def test_the_position_survives_json() -> None:
    deferred = DeferredRecord(topic="interactions", partition=1, offset=7, timestamp_ms=5, value=b"\x00\xff")
    position = LearnerPosition(
        live_release_id="r",
        offsets={"interactions/1": 8},
        ledger_name="ledger-r.txt",
        ledger_bytes=12,
        num_learned=3,
        num_duplicate=4,
        num_since_release=2,
        checkpoint_time_ms=9,
        num_dead_lettered=1,
        deferred=[deferred],
    )
    assert LearnerPosition.from_extra(position.offsets, position.extra()) == position
