"""The tour goes on where a promise is not kept, and says so at its end."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import Recommendation, RecommendResponse
from protos.headrace.v1.release_pb2 import Release
from services.demo import moments, tour
from services.errors import BackendUnavailable
from services.settings import Settings


async def in_a_crowd(*_: Any, **__: Any) -> moments.NewItemFound:
    answer = RecommendResponse(recommendations=[Recommendation(item_id=str(n)) for n in range(100)])
    return moments.NewItemFound(answer=answer, place=93, seconds=5.1)


async def never(*_: Any, **__: Any) -> moments.NewItemFound:
    raise BackendUnavailable("the new item was not recommended within 30 s")


@pytest.mark.parametrize(
    ("announce", "broken", "undecided"),
    [
        (never, ["the new item was not recommended within 30 s"], 0),
        # the model likes other new items better: nothing is known of how fast it would be shown
        (in_a_crowd, [], 1),
    ],
)
def test_a_new_item_that_is_not_found_is_said(
    monkeypatch: pytest.MonkeyPatch, announce: Any, broken: list[str], undecided: int
) -> None:
    monkeypatch.setattr(moments, "announce", announce)
    monkeypatch.setattr(tour.Tour, "_some_user", lambda self, n: "u")
    monkeypatch.setattr(tour.Tour, "_history", lambda self, user_id: ["i"])
    monkeypatch.setattr(tour.Tour, "_present_ms", 7)
    one = tour.Tour(
        settings=Settings(),
        dataset=SimpleNamespace(items=[Item(item_id="i", title="Alien")]),  # type: ignore[arg-type]
        begin=0,
        console=Console(file=io.StringIO()),
        announced=set(),
    )
    asyncio.run(one._show_new_item(None))  # type: ignore[arg-type]
    assert one.findings.broken == broken
    assert len(one.findings.undecided) == undecided
    assert all("place 93 of 100" in text for text in one.findings.undecided)
    assert one.announced == {"headrace-demo-new-item"}


@pytest.mark.parametrize(
    ("num_new", "reason", "broken", "undecided"),
    [(2, "", 0, 0), (0, "undecided: only 20 of 100 events to compare", 0, 1), (1, "worse", 1, 0)],
)
def test_releases_that_the_gate_could_not_judge_are_no_failure(
    num_new: int, reason: str, broken: int, undecided: int
) -> None:
    one = tour.Tour(
        settings=Settings(),
        dataset=SimpleNamespace(items=[]),  # type: ignore[arg-type]
        begin=0,
        console=Console(file=io.StringIO()),
        announced=set(),
    )
    one._judge_releases(num_new, [Release(release_id="a", reason=reason)], 100_000)
    assert len(one.findings.broken) == broken
    assert len(one.findings.undecided) == undecided
