"""A new item is found at once, late and far down, or not at all."""

import asyncio
from typing import Any

import pytest

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import Recommendation, RecommendResponse
from services.demo import moments
from services.errors import BackendUnavailable


class Gateway:
    """Answers ten or a hundred items; the new one stands among them from the `since`-th answer on."""

    def __init__(self, place: int, since: int) -> None:
        self.place, self.since, self.num_answered = place, since, 0

    async def UpsertItems(self, request: Any, **_: float) -> None:
        assert [item.item_id for item in request.items] == ["new"]

    async def Recommend(self, request: Any, **_: float) -> RecommendResponse:
        self.num_answered += 1
        item_ids = [str(n) for n in range(request.k)]
        if self.num_answered >= self.since and self.place <= request.k:
            item_ids[self.place - 1] = "new"
        return RecommendResponse(recommendations=[Recommendation(item_id=item_id) for item_id in item_ids])


def announce(gateway: Gateway, patience_s: float) -> moments.NewItemFound:
    stub: Any = gateway
    return asyncio.run(moments.announce(stub, Item(item_id="new"), "u", patience_s=patience_s))


def test_an_item_among_the_first_ten_is_found_with_its_place() -> None:
    found = announce(Gateway(place=9, since=3), 30.0)
    assert (found.place, len(found.answer.recommendations)) == (9, moments.FEW)


def test_a_hundred_are_asked_for_where_ten_do_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MAX_NEW_ITEM_S", 0.05)
    found = announce(Gateway(place=93, since=1), 30.0)
    assert found.place == 93
    assert found.seconds >= 0.05


def test_an_item_that_never_comes_is_an_error_in_the_end() -> None:
    with pytest.raises(BackendUnavailable, match="not recommended within 0 s"):
        announce(Gateway(place=1, since=10_000), 0.1)
