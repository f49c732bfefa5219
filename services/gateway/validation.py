"""What a caller may ask of the gateway, said field by field.

Owns the limits of the request messages. Events and items have their own rules in
`streaming.messages.events`; here they only get the name of the field they sit in. Knows no state.
"""

from collections.abc import Sequence

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    ExplainRequest,
    GetUserRequest,
    RecommendRequest,
    UpsertItemsRequest,
)
from services.errors import InvalidRequest
from streaming.messages.events import id_problem, validate_item

DEFAULT_K = 10
DEFAULT_USER_EVENTS = 20
MAX_BEAM = 512
MAX_EXCLUDED = 1_000
MAX_CATEGORIES = 100
MAX_ITEMS_PER_CALL = 1_000

Violation = tuple[str, str]


def check_recommend(request: RecommendRequest, *, max_k: int, prefix: str = "") -> None:
    """Raises InvalidRequest naming every wrong field; `prefix` is put before the names."""
    violations = [
        *_id_violations("user_id", request.user_id),
        *_range_violations("k", request.k, max_k),
        *_range_violations("beam", request.beam, MAX_BEAM),
        *_ids_violations("exclude_item_ids", request.exclude_item_ids, MAX_EXCLUDED),
        *_ids_violations("categories", request.categories, MAX_CATEGORIES),
        *_source_violations(request.disabled_sources),
    ]
    if request.request_id:
        violations += _id_violations("request_id", request.request_id)
    _refuse([(prefix + field, text) for field, text in violations])


def check_explain(request: ExplainRequest) -> None:
    """Raises InvalidRequest naming every wrong field."""
    _refuse([*_id_violations("user_id", request.user_id), *_id_violations("item_id", request.item_id)])


def check_get_user(request: GetUserRequest, *, max_limit: int) -> None:
    """Raises InvalidRequest naming every wrong field."""
    _refuse(
        [*_id_violations("user_id", request.user_id), *_range_violations("limit", request.limit, max_limit)]
    )


def check_upsert_items(request: UpsertItemsRequest) -> None:
    """Raises InvalidRequest naming every wrong field as `items[3].item_id`; one bad item refuses the call."""
    if not request.items:
        raise InvalidRequest(("items", "must hold at least one item"))
    if len(request.items) > MAX_ITEMS_PER_CALL:
        raise InvalidRequest(("items", f"must hold at most {MAX_ITEMS_PER_CALL} items"))
    _refuse([v for index, item in enumerate(request.items) for v in _item_violations(index, item)])


def _item_violations(index: int, item: Item) -> list[Violation]:
    return [(f"items[{index}].{field}", problem) for field, problem in validate_item(item)]


def _refuse(violations: list[Violation]) -> None:
    if violations:
        raise InvalidRequest(*violations)


def _id_violations(field: str, value: str) -> list[Violation]:
    problem = id_problem(value)
    return [(field, problem)] if problem else []


def _ids_violations(field: str, values: Sequence[str], limit: int) -> list[Violation]:
    if len(values) > limit:
        return [(field, f"must hold at most {limit} entries")]
    return [v for index, value in enumerate(values) for v in _id_violations(f"{field}[{index}]", value)]


def _range_violations(field: str, value: int, highest: int) -> list[Violation]:
    if 0 <= value <= highest:
        return []
    return [(field, f"must be 1 to {highest}, or 0 for the default")]


def _source_violations(sources: Sequence[int]) -> list[Violation]:
    known = set(CandidateSource.values()) - {CandidateSource.CANDIDATE_SOURCE_UNSPECIFIED}
    return [
        (f"disabled_sources[{index}]", "is not a candidate source")
        for index, source in enumerate(sources)
        if source not in known
    ]
