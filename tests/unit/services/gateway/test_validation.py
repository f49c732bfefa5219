"""Requests to the gateway: every wrong field is named."""

import pytest

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import (
    ExplainRequest,
    GetUserRequest,
    RecommendRequest,
    UpsertItemsRequest,
)
from services.errors import InvalidRequest
from services.gateway.validation import (
    check_explain,
    check_get_user,
    check_recommend,
    check_upsert_items,
)


def fields_of(error: pytest.ExceptionInfo[InvalidRequest]) -> list[str]:
    return [field for field, _ in error.value.violations]


def test_a_plain_request_is_valid() -> None:
    check_recommend(RecommendRequest(user_id="u", k=100, beam=512, disabled_sources=[1, 6]), max_k=100)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (RecommendRequest(), "user_id"),
        (RecommendRequest(user_id="u" * 257), "user_id"),
        (RecommendRequest(user_id="u\n"), "user_id"),
        (RecommendRequest(user_id="u", k=-1), "k"),
        (RecommendRequest(user_id="u", k=101), "k"),
        (RecommendRequest(user_id="u", beam=513), "beam"),
        (RecommendRequest(user_id="u", exclude_item_ids=["a", ""]), "exclude_item_ids[1]"),
        (RecommendRequest(user_id="u", exclude_item_ids=["a"] * 1_001), "exclude_item_ids"),
        (RecommendRequest(user_id="u", categories=["x" * 300]), "categories[0]"),
        (RecommendRequest(user_id="u", disabled_sources=[99]), "disabled_sources[0]"),
        (RecommendRequest(user_id="u", disabled_sources=[0]), "disabled_sources[0]"),
        (RecommendRequest(user_id="u", request_id="r" * 257), "request_id"),
    ],
)
def test_a_wrong_field_is_named(request_: RecommendRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_recommend(request_, max_k=100)
    assert fields_of(error) == [field]


def test_all_wrong_fields_are_named_at_once_with_the_prefix() -> None:
    with pytest.raises(InvalidRequest) as error:
        check_recommend(RecommendRequest(k=-5, beam=-1), max_k=100, prefix="request.")
    assert fields_of(error) == ["request.user_id", "request.k", "request.beam"]


def test_explain_and_get_user_name_their_fields() -> None:
    with pytest.raises(InvalidRequest) as error:
        check_explain(ExplainRequest())
    assert fields_of(error) == ["user_id", "item_id"]
    with pytest.raises(InvalidRequest) as error:
        check_get_user(GetUserRequest(user_id="u", limit=201), max_limit=200)
    assert fields_of(error) == ["limit"]


def test_a_wrong_item_is_named_by_its_place() -> None:
    good = Item(item_id="a", title="A")
    check_upsert_items(UpsertItemsRequest(items=[good]))
    with pytest.raises(InvalidRequest) as error:
        check_upsert_items(UpsertItemsRequest(items=[good, good, good, Item(title="no id")]))
    assert fields_of(error) == ["items[3].item_id"]
    with pytest.raises(InvalidRequest) as error:
        check_upsert_items(UpsertItemsRequest())
    assert fields_of(error) == ["items"]
