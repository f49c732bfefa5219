"""The tour goes on where a promise is not kept, and says so at its end."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.release_pb2 import Release
from services.demo import moments, tour
from services.errors import BackendUnavailable
from services.settings import Settings


def test_a_new_item_that_is_not_found_is_a_promise_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        raise BackendUnavailable("the new item was not recommended within 30 s")

    monkeypatch.setattr(moments, "announce", never)
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
    assert one.findings.broken == ["the new item was not recommended within 30 s"]
    assert one.announced == {"headrace-demo-new-item"}


@pytest.mark.parametrize(
    ("recall", "other", "num_events", "expected"),
    [
        (0.10, 0.08, 500, True),
        (0.08, 0.09, 500, None),  # within the noise of 500 events
        (0.03, 0.09, 500, False),
        (0.10, 0.08, 99, None),
        (None, 0.08, 500, None),
    ],
)
def test_a_recall_is_above_another_or_not_or_that_is_open(
    recall: float | None, other: float, num_events: int, expected: bool | None
) -> None:
    assert tour.is_above(recall, other, num_events) is expected


def test_what_is_undecided_is_no_failure_and_is_said() -> None:
    findings = tour.Findings()
    findings.judge(True, "one holds")
    findings.judge(None, "another holds")
    assert findings.broken == []
    assert findings.undecided == ["whether another holds (too few events)"]
    panel = tour.promises_panel(findings, 200.0)
    assert panel.border_style == "green"
    assert "every promise that could be decided was kept" in str(panel.renderable)
    assert "undecided: whether another holds" in str(panel.renderable)
    findings.judge(False, "a third holds")
    assert tour.promises_panel(findings, 200.0).border_style == "red"


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
