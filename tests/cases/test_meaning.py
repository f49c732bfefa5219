"""Events mean what they say: what was shown, what was turned down, in what order, by how many."""

import random
import time
import uuid
from collections.abc import Callable

import pytest

from protos.headrace.v1 import recommend_pb2
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.recommend_pb2 import FallbackReason
from tests.cases.world import NUM_ITEMS, NUM_KINDS, World, item_of, kind_of

Record = Callable[[str, object], None]

pytestmark = pytest.mark.integration

_SHARE = 20 // NUM_KINDS


def event(user_id: str, item_id: str, action: "Action.ValueType", **fields: float | str) -> Event:
    """An event of now with an id of its own, unless `fields` say otherwise."""
    own = {"event_id": uuid.uuid4().hex, "event_time_ms": time.time_ns() // 1_000_000}
    return Event(user_id=user_id, item_id=item_id, action=action, **own | fields)  # type: ignore[arg-type]


def items_of(kind: int, count: int) -> list[str]:
    """The first `count` items of a kind."""
    return [item_of(kind, number) for number in range(count)]


def place(world: World, item_id: str) -> int:
    """Where strangers find an item, 1 being the first."""
    return world.answer(f"stranger-{uuid.uuid4().hex}", k=NUM_ITEMS).index(item_id) + 1


@pytest.mark.case("5 purchases of one kind, then 60 impressions, then 1,000")
def test_impressions_displace_nothing(world: World, record_property: Record) -> None:
    user, bought = "shopper", items_of(1, 5)
    for item_id in bought:
        world.track(user, item_id, Action.ACTION_PURCHASE)
    before = world.num_of_kind(user, 1, k=10)
    shares = [before]
    for num_shown in (60, 1_000):
        shown = [f"i{n % NUM_ITEMS}" for n in range(num_shown)]
        with world.taking(num_shown):
            world.send(event(user, item_id, Action.ACTION_IMPRESSION) for item_id in shown)
        assert not set(bought) & set(world.answer(user, k=50))
        shares.append(world.num_of_kind(user, 1, k=10))
    record_property("figure", f"own kind in the top 10: {shares}")
    assert before >= 6
    assert min(shares) >= before - 1


@pytest.mark.case("20 trained users, 10 random impressions each")
def test_impressions_of_trained_users_change_nothing(world: World, record_property: Record) -> None:
    users = [f"u{n}" for n in range(40, 60)]

    def own_share() -> float:
        return sum(world.num_of_kind(user, int(user[1:]) % NUM_KINDS, k=10) for user in users) / 200

    before = own_share()
    rng = random.Random(0)
    with world.taking(200):
        world.send(
            event(user, f"i{rng.randrange(NUM_ITEMS)}", Action.ACTION_IMPRESSION)
            for user in users
            for _ in range(10)
        )
    after = own_share()
    record_property("figure", f"own kind in the top 10: {before:.2f}, then {after:.2f}")
    assert before > 0.6
    assert abs(after - before) <= 0.05


@pytest.mark.case("8 skips of one kind; 8 one-star ratings; 8 five-star ratings")
def test_negatives_are_negatives(world: World, record_property: Record) -> None:
    actions = {
        "skips": ("ACTION_SKIP", 0.0),
        "one star": ("ACTION_RATING", 1.0),
        "five stars": ("ACTION_RATING", 5.0),
    }
    found = {}
    for name, (action, value) in actions.items():
        for item_id in items_of(2, 8):
            world.track(f"rater {name}", item_id, Action.Value(action), value=value)
        found[name] = world.num_of_kind(f"rater {name}", 2)
        reason = world.recommend(f"rater {name}").fallback_reason
        wished = name == "five stars"
        assert reason == (0 if wished else FallbackReason.FALLBACK_REASON_NO_USABLE_EVENTS)
    record_property("figure", f"of that kind among 20: {found}")
    assert found["skips"] < _SHARE
    assert found["one star"] < _SHARE
    assert found["five stars"] > _SHARE


@pytest.mark.case("five skips of a kind by somebody who likes it")
def test_skips_lower_a_liked_kind(world: World, record_property: Record) -> None:
    user, kind, before = "", 0, 0
    while before < 10:
        user = f"u{int(user[1:] or 59) + 1}"
        kind = int(user[1:]) % NUM_KINDS
        before = world.num_of_kind(user, kind)
    skipped = [item_id for item_id in world.answer(user) if kind_of(item_id) == kind][:5]
    for item_id in skipped:
        world.track(user, item_id, Action.ACTION_SKIP)
    after = world.answer(user)
    record_property(
        "figure", f"of that kind among 20: {before}, then {sum(kind_of(i) == kind for i in after)}"
    )
    assert not set(skipped) & set(after)
    assert sum(kind_of(item_id) == kind for item_id in after) < before


@pytest.mark.case("80 one-star ratings of one item by 80 users")
def test_low_ratings_make_nothing_popular(world: World, record_property: Record) -> None:
    item_id = world.answer("a stranger", k=NUM_ITEMS)[-5]
    before = place(world, item_id)
    with world.taking(80):
        world.send(event(f"critic-{n}", item_id, Action.ACTION_RATING, value=1.0) for n in range(80))
    after = place(world, item_id)
    record_property("figure", f"strangers' place: {before}, then {after}")
    assert after >= before - 2


@pytest.mark.case("one user clicks one item 400 times in a minute")
def test_one_bot_moves_nobody(world: World, record_property: Record) -> None:
    item_id = world.answer("a stranger", k=NUM_ITEMS)[49]
    with world.taking(1):
        world.track("one of many", item_id, Action.ACTION_CLICK)
    before = place(world, item_id)
    now_ms = time.time_ns() // 1_000_000
    with world.taking(400):
        world.send(
            event("bot", item_id, Action.ACTION_CLICK, event_time_ms=now_ms - 60_000 + 150 * n)
            for n in range(400)
        )
    after = place(world, item_id)
    record_property("figure", f"strangers' place: {before}, then {after}")
    assert after >= before - 20  # as far as one click moves an item of a hundred


@pytest.mark.case("12 events of a user sent newest first")
def test_order_is_event_time(world: World, record_property: Record) -> None:
    now_ms = time.time_ns() // 1_000_000
    wished = [item_of(0, n) for n in range(6)] + [item_of(3, n) for n in range(6)]
    events = [
        event("in-order", item_id, Action.ACTION_CLICK, event_time_ms=now_ms - 86_400_000 * (12 - n))
        for n, item_id in enumerate(wished)
    ]
    backwards = []
    for one in reversed(events):
        other = Event()
        other.CopyFrom(one)
        other.user_id, other.event_id = "newest-first", uuid.uuid4().hex
        backwards.append(other)
    with world.taking(24):
        world.send(events)
        for other in backwards:
            world.gateway.Track(recommend_pb2.TrackRequest(event=other), timeout=30)
    assert world.num_events("newest-first") == 12
    ours, theirs = world.answer("newest-first"), world.answer("in-order")
    record_property(
        "figure", f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of 20 places the same"
    )
    assert ours == theirs
    request = recommend_pb2.GetUserRequest(user_id="newest-first", limit=50)
    shown = [one.item_id for one in world.gateway.GetUser(request, timeout=30).events]
    assert shown == wished


@pytest.mark.case("apps that number their events 1, 2, 3 for each user")
def test_event_ids_are_those_of_a_user(world: World, record_property: Record) -> None:
    before = world.status()
    with world.taking(150):
        world.send(
            event(f"app-{user}", f"i{(7 * user + n) % NUM_ITEMS}", Action.ACTION_CLICK, event_id=str(n))
            for user in range(50)
            for n in range(3)
        )
    after = world.status()
    learned = after.num_events_learned - before.num_events_learned
    record_property("figure", f"{learned} of 150 learned")
    assert learned == 150
    assert after.num_events_duplicate == before.num_events_duplicate
    assert [world.num_events(f"app-{user}") for user in range(50)] == [3] * 50


@pytest.mark.case("a history of impressions alone")
def test_a_history_without_a_wish_is_a_fallback_with_its_reason(world: World) -> None:
    for item_id in items_of(0, 3):
        world.track("onlooker", item_id, Action.ACTION_IMPRESSION)
    answer = world.recommend("onlooker")
    assert answer.fallback_reason == FallbackReason.FALLBACK_REASON_NO_USABLE_EVENTS
    assert len(answer.recommendations) == 20
    assert not answer.degraded
