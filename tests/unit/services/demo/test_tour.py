"""The tour goes on where a promise is not kept, and says so at its end."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from protos.headrace.v1.items_pb2 import Item
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
