"""What a caller may ask of the gateway, said field by field.

Owns the limits of the request messages; the checks are `services/wire/validation.py`'s. Items have their own
rules in `streaming.messages.events`; here they only get the name of the field they sit in. Knows no state.
"""

from protos.headrace.v1.recommend_pb2 import (
    ExplainRequest,
    GetUserRequest,
    RecommendRequest,
    UpsertItemsRequest,
)
from services.wire.validation import RequestCheck
from streaming.messages.events import validate_item

DEFAULT_K = 10
DEFAULT_USER_EVENTS = 20
MAX_BEAM = 512
MAX_EXCLUDED = 1_000
MAX_CATEGORIES = 100
MAX_ITEMS_PER_CALL = 1_000


def check_recommend(request: RecommendRequest, *, max_k: int, prefix: str = "") -> None:
    """Raises InvalidRequest naming every wrong field; `prefix` is put before the names."""
    check = RequestCheck(prefix)
    check.id(request.user_id, "user_id")
    check.size(request.k, "k", max_k)
    check.size(request.beam, "beam", MAX_BEAM)
    check.ids(request.exclude_item_ids, "exclude_item_ids", MAX_EXCLUDED)
    check.ids(request.categories, "categories", MAX_CATEGORIES)
    check.sources(request.disabled_sources)
    if request.request_id:
        check.id(request.request_id, "request_id")
    check.done()


def check_explain(request: ExplainRequest) -> None:
    """Raises InvalidRequest naming every wrong field."""
    check = RequestCheck()
    check.id(request.user_id, "user_id")
    check.id(request.item_id, "item_id")
    check.done()


def check_get_user(request: GetUserRequest, *, max_limit: int) -> None:
    """Raises InvalidRequest naming every wrong field."""
    check = RequestCheck()
    check.id(request.user_id, "user_id")
    check.size(request.limit, "limit", max_limit)
    check.done()


def check_upsert_items(request: UpsertItemsRequest) -> None:
    """Raises InvalidRequest naming every wrong field as `items[3].item_id`; one bad item refuses the call."""
    check = RequestCheck()
    check.that(len(request.items) > 0, "items", "must hold at least one item")
    check.length(request.items, "items", MAX_ITEMS_PER_CALL)
    for index, item in enumerate(request.items[:MAX_ITEMS_PER_CALL]):
        check.found(validate_item(item), f"items[{index}].")
    check.done()
