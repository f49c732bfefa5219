"""Which ranked items a caller may get, and why there are fewer than asked for.

Pure functions over ids, the catalogue view and the request; knows nothing of models or the network.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    Recommendation,
    RecommendRequest,
    ShortfallReason,
)
from services.gateway.items import ItemInfo, ItemView


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one request rules out: ids never answered, and the categories of which one is needed (if any)."""

    blocked: frozenset[str]
    categories: frozenset[str]

    @classmethod
    def of(cls, request: RecommendRequest, seen: Iterable[str]) -> "Policy":
        """The policy of a request by a user who already had the items `seen`."""
        blocked = frozenset(request.exclude_item_ids)
        if not request.include_seen:
            blocked |= frozenset(seen)
        return cls(blocked=blocked, categories=frozenset(request.categories))

    def allows(self, item_id: str, info: ItemInfo | None) -> bool:
        """Whether the item may be answered; `info` None means it was never announced on `items`.

        Such an item came from a release, which vouches for its availability; it has no category.
        """
        if item_id in self.blocked or (info is not None and not info.available):
            return False
        return not self.categories or (info is not None and not self.categories.isdisjoint(info.categories))


def choose(ranked: Iterable[Recommendation], policy: Policy, items: ItemView, k: int) -> list[Recommendation]:
    """The first k distinct allowed items of `ranked`, in order, with their titles filled in."""
    chosen: dict[str, Recommendation] = {}
    for recommendation in ranked:
        if len(chosen) == k:
            break
        item_id = recommendation.item_id
        info = items.get(item_id)
        if item_id not in chosen and policy.allows(item_id, info):
            recommendation.title = info.title if info else ""
            chosen[item_id] = recommendation
    return list(chosen.values())


def popular(popular_ids: Iterable[str], items: ItemView) -> Iterator[str]:
    """Announced items by popularity, then the rest from newest to oldest; an item may come twice."""
    yield from (item_id for item_id in popular_ids if items.get(item_id) is not None)
    yield from items.newest()


def fill(
    chosen: list[Recommendation], fallback_ids: Iterable[str], policy: Policy, items: ItemView, k: int
) -> list[Recommendation]:
    """`chosen` brought to k items from `fallback_ids`, with source FALLBACK and scores below the chosen."""
    missing = k - len(chosen)
    if missing <= 0:
        return chosen
    taken = Policy(blocked=policy.blocked | {item.item_id for item in chosen}, categories=policy.categories)
    proposals = (
        Recommendation(item_id=item_id, sources=[CandidateSource.CANDIDATE_SOURCE_FALLBACK])
        for item_id in fallback_ids
    )
    added = choose(proposals, taken, items, missing)
    lowest = min((item.score for item in chosen), default=float(len(added)))
    for position, item in enumerate(added, start=1):
        item.score = lowest - position
    return chosen + added


def shortfall(num_chosen: int, k: int, items: ItemView) -> "ShortfallReason.ValueType":
    """Why an answer has fewer than k items: there are no more, or the filters took them."""
    if num_chosen >= k:
        return ShortfallReason.SHORTFALL_REASON_UNSPECIFIED
    if items.num_available < k:
        return ShortfallReason.SHORTFALL_REASON_CATALOGUE_EXHAUSTED
    return ShortfallReason.SHORTFALL_REASON_FILTERED
