"""The two moments the demo times for a real user: an event changes the answer, a new item is found.

Speaks only the public API, as a client would. Times are wall-clock seconds on the client's side, from
the broker's acknowledgement of the write to the first answer that shows it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from protos.headrace.v1 import events_pb2, items_pb2, recommend_pb2, recommend_pb2_grpc
from services.errors import BackendUnavailable

MAX_NEW_ITEM_S = 5.0
FEW = 10
_POLL_INTERVAL_S = 0.02
_PATIENCE_S = 30.0
_REQUEST_TIMEOUT_S = 10.0

# a name of the typed stubs only
Stub: TypeAlias = "recommend_pb2_grpc.RecommenderServiceAsyncStub"


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """The answers before and after some events, and the seconds between the last event and the change."""

    before: recommend_pb2.RecommendResponse
    after: recommend_pb2.RecommendResponse
    events: Sequence[items_pb2.Item]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NewItemFound:
    """The answer that first held a new item, its place there (from 1), and the seconds since it was
    announced."""

    answer: recommend_pb2.RecommendResponse
    place: int
    seconds: float


async def recommend(stub: Stub, user_id: str, k: int = FEW) -> recommend_pb2.RecommendResponse:
    """One answer of the gateway."""
    return await stub.Recommend(
        recommend_pb2.RecommendRequest(user_id=user_id, k=k), timeout=_REQUEST_TIMEOUT_S
    )


def unlike(
    history: Sequence[str], popular: Sequence[str], items: Mapping[str, items_pb2.Item], num_items: int
) -> list[items_pb2.Item]:
    """Popular items of one category that is rare in the history: a taste the user has not shown yet."""
    mine = Counter(category for item_id in history for category in items[item_id].categories)
    of_category: dict[str, list[items_pb2.Item]] = {}
    for item_id in popular:
        if item_id not in history:
            for category in items[item_id].categories:
                of_category.setdefault(category, []).append(items[item_id])
    enough = [name for name, members in of_category.items() if len(members) >= num_items]
    if not enough:
        return [items[item_id] for item_id in popular if item_id not in history][:num_items]
    return of_category[min(enough, key=lambda name: (mine[name], name))][:num_items]


async def change_answer(
    stub: Stub, user_id: str, liked: Sequence[items_pb2.Item], template: events_pb2.Event
) -> ChangedAnswer:
    """Sends one event for each item of `liked`, then asks until the answer is another one.

    `template` gives the action, the value and the event time. An answer is changed when its items are,
    apart from the items just sent, which are left out as seen. Raises BackendUnavailable after 30 s
    without a change.
    """
    before = await recommend(stub, user_id)
    for item in liked:
        event = events_pb2.Event(
            user_id=user_id,
            item_id=item.item_id,
            action=template.action,
            value=template.value,
            event_time_ms=template.event_time_ms,
        )
        await stub.Track(recommend_pb2.TrackRequest(event=event), timeout=_REQUEST_TIMEOUT_S)
    started = time.monotonic()
    sent = {item.item_id for item in liked}
    expected = [item.item_id for item in before.recommendations if item.item_id not in sent]
    while time.monotonic() - started < _PATIENCE_S:
        after = await recommend(stub, user_id)
        item_ids = [item.item_id for item in after.recommendations]
        if not sent & set(item_ids) and item_ids[: len(expected)] != expected:
            return ChangedAnswer(before=before, after=after, events=liked, seconds=time.monotonic() - started)
        await asyncio.sleep(_POLL_INTERVAL_S)
    raise BackendUnavailable(f"five events did not change the answer within {_PATIENCE_S:.0f} s")


async def announce(
    stub: Stub, item: items_pb2.Item, user_id: str, *, most: int = 100, patience_s: float = _PATIENCE_S
) -> NewItemFound:
    """Announces an item and asks for `user_id` until the answer of ten holds it.

    Where it does not within `MAX_NEW_ITEM_S`, for a model may like other new items better, asks for `most`
    items as well. Raises BackendUnavailable after `patience_s` without it among those.
    """
    await stub.UpsertItems(recommend_pb2.UpsertItemsRequest(items=[item]), timeout=_REQUEST_TIMEOUT_S)
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < patience_s:
        for k in (FEW,) if seconds < MAX_NEW_ITEM_S else (FEW, most):
            answer = await recommend(stub, user_id, k)
            item_ids = [found.item_id for found in answer.recommendations]
            if item.item_id in item_ids:
                place = item_ids.index(item.item_id) + 1
                return NewItemFound(answer=answer, place=place, seconds=time.monotonic() - started)
        await asyncio.sleep(_POLL_INTERVAL_S)
    raise BackendUnavailable(f"the new item was not recommended within {patience_s:.0f} s")
