"""What the demo takes from its training: progress while it goes on, and releases one after the other."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from services.demo.training import Measured, Training
from services.errors import ServiceError


def release(release_id: str, recall: float) -> dict[str, object]:
    metrics = {"compared_recall@10": recall, "compared_popularity_recall@10": 0.05, "num_compared": 500.0}
    return {"release": {"release_id": release_id, "metrics": metrics}}


class Lines:
    """The lines of a child that has ended."""

    def __init__(self, *said: dict[str, object]) -> None:
        self._lines = [json.dumps(one).encode() + b"\n" for one in said]

    def __aiter__(self) -> "Lines":
        return self

    async def __anext__(self) -> bytes:
        if not self._lines:
            raise StopAsyncIteration
        return self._lines.pop(0)


async def read_all(*said: dict[str, object]) -> list[object]:
    """What two waits for a release returned or raised, and then what was drawn."""
    drawn: list[object] = []
    training = Training(SimpleNamespace(stdout=Lines(*said)))  # type: ignore[arg-type]
    training.progress = lambda *report: drawn.append(report[:3])
    await training.read()
    results = await asyncio.gather(
        *(training.next_release(lambda *_: None) for _ in range(2)), return_exceptions=True
    )
    return [*results, drawn]


def test_two_releases_come_in_their_order_and_progress_is_drawn() -> None:
    step = {"stage": "learning to rank", "done": 1, "total": 20, "figures": {}}
    modest, whole, drawn = asyncio.run(read_all(step, release("a", 0.06), release("b", 0.08)))
    assert modest == Measured(release_id="a", num_events=500, recall=0.06, popularity_recall=0.05)
    assert isinstance(whole, Measured)
    assert whole.recall == 0.08
    assert drawn == [("learning to rank", 1, 20)]


def test_a_training_that_ends_early_fails_the_tour() -> None:
    modest, failure, _ = asyncio.run(read_all(release("a", 0.06)))
    assert isinstance(modest, Measured)
    assert isinstance(failure, ServiceError)


def test_a_line_that_is_no_json_fails_the_tour() -> None:
    async def read_odd() -> None:
        lines = Lines()
        lines._lines = [b"Segmentation fault\n"]
        training = Training(SimpleNamespace(stdout=lines))  # type: ignore[arg-type]
        with pytest.raises(json.JSONDecodeError):
            await training.read()
        await asyncio.wait_for(training.next_release(lambda *_: None), 5)

    with pytest.raises(ServiceError):
        asyncio.run(read_odd())


def test_a_release_that_nothing_was_measured_of_has_no_figures() -> None:
    measured = Measured.from_release({"release_id": "a", "metrics": {}})
    assert measured == Measured(release_id="a", num_events=0, recall=None, popularity_recall=None)


@pytest.mark.parametrize("name", ["compared_recall@10", "num_compared"])
def test_a_partial_measure_does_not_fail(name: str) -> None:
    assert Measured.from_release({"release_id": "a", "metrics": {name: 1.0}}).popularity_recall is None
