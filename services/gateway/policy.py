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
from services.gateway.item_view import ItemInfo, ItemView
from services.gateway.ranking import RankedItem
from services.wire.source_masks import mask_of, sources_of

# One in this many places of an answer is for an item that was announced lately and has few events.
EXPLORE_EVERY = 10
_NEW = mask_of(CandidateSource.CANDIDATE_SOURCE_NEW)
_FALLBACK = mask_of(CandidateSource.CANDIDATE_SOURCE_FALLBACK)


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


def choose(ranked: Iterable[RankedItem], policy: Policy, items: ItemView, k: int) -> list[Recommendation]:
    """k distinct allowed items of `ranked`, in order, with their titles.

    The first k, except that one place in `EXPLORE_EVERY` is for a new item. An item that is never shown is
    never chosen, and a ranker never puts first what nobody chooses: so the last places of the answer go to
    the best new items further down, unless it already has enough of them.
    """
    first: list[RankedItem] = []
    later_new: list[RankedItem] = []
    num_new, taken = k // EXPLORE_EVERY, set[str]()
    for item in ranked:
        is_new = bool(item.source_mask & _NEW)
        if len(first) == k:
            if len(later_new) >= num_new:
                break
            if not is_new:
                continue
        if item.item_id in taken or not policy.allows(item.item_id, items.get(item.item_id)):
            continue
        taken.add(item.item_id)
        if len(first) < k:
            first.append(item)
            num_new -= is_new
        else:
            later_new.append(item)
    chosen = _without_last_old(first, len(later_new)) + later_new
    return [_recommendation(item, items.get(item.item_id)) for item in chosen]


def _without_last_old(ranked: list[RankedItem], num_left_out: int) -> list[RankedItem]:
    """`ranked` without the last `num_left_out` items that are not new."""
    kept = []
    for item in reversed(ranked):
        if num_left_out and not item.source_mask & _NEW:
            num_left_out -= 1
        else:
            kept.append(item)
    return kept[::-1]


def _recommendation(item: RankedItem, info: ItemInfo | None) -> Recommendation:
    return Recommendation(
        item_id=item.item_id,
        score=item.score,
        sources=sources_of(item.source_mask),
        title=info.title if info else "",
    )


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
    proposals = (RankedItem(item_id, 0.0, _FALLBACK) for item_id in fallback_ids)
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
