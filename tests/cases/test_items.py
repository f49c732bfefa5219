"""Items and data as people bring them: withdrawn, oddly named, of another width, sent twice."""

import json
import time

import pytest

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item
from protos.headrace.v1.recommend_pb2 import RecommendRequest, ShortfallReason, UpsertItemsRequest
from streaming.clients.dead_letter import list_dead_letters
from streaming.clients.producer import Producer
from streaming.messages.topics import ITEMS
from tests.cases.test_meaning import Record
from tests.cases.world import World, until

pytestmark = pytest.mark.integration


def withdraw(world: World, item_id: str) -> None:
    """Writes a tombstone."""
    with Producer(world.settings.broker.bootstrap_servers) as producer:
        producer.send_raw(ITEMS, item_id.encode(), None)
        producer.flush()


@pytest.mark.case("a tombstone on `items`")
def test_a_tombstone_withdraws(world: World, record_property: Record) -> None:
    gone = world.answer("u3")[0]
    began_s = time.monotonic()
    withdraw(world, gone)
    users = ("u3", "u7", "nobody knows")
    until(lambda: not any(gone in world.answer(user, k=60) for user in users), f"{gone} is gone")
    record_property("figure", f"gone after {time.monotonic() - began_s:.1f} s")
    assert all(gone not in world.answer(user, k=99) for user in users)


@pytest.mark.case("a title `Mug [/sale] 2 for 1`; a user `u[/x]`; a terminal that is ascii")
def test_text_is_data(world: World) -> None:
    title = "Mug [/sale] 2 for 1 \U0001f600"
    item = Item(item_id="odd [bold]", title=title, categories=["odd"])
    world.gateway.UpsertItems(UpsertItemsRequest(items=[item]), timeout=30)
    world.headrace("track", "u[/x]", "i1", "--action", "like")

    def shown() -> bool:
        answer = world.headrace("recommend", "u[/x]", "--category", "odd").stdout
        return "Mug [/sale] 2 for 1" in " ".join(answer.split()) and "u[/x]" in answer

    until(shown, "the title as it is")
    for encoding in ("ascii", "latin-1"):
        done = world.headrace("recommend", "u[/x]", "--category", "odd", PYTHONIOENCODING=encoding)
        assert "Mug [/sale] 2 for 1" in " ".join(done.stdout.split())
    found = json.loads(world.headrace("recommend", "u[/x]", "--category", "odd", "--json").stdout)
    assert found["recommendations"][0]["title"] == title
    withdraw(world, "odd [bold]")


@pytest.mark.case("300 items whose vectors have another width, no text")
def test_vectors_of_another_width_are_refused_by_name(world: World) -> None:
    vector = Embedding(modality="text", values=[1.0] * 7)
    items = [Item(item_id=f"narrow-{n}", embeddings=[vector]) for n in range(300)]
    world.gateway.UpsertItems(UpsertItemsRequest(items=items), timeout=30)
    bootstrap = world.settings.broker.bootstrap_servers

    def letters() -> list[str]:
        found = [one for one in list_dead_letters(bootstrap, ITEMS) if one.reason == "wrong_width"]
        return [one.exception for one in found]

    until(lambda: len(letters()) == 300, "300 dead letters")
    assert "384 numbers; text has 7" in letters()[0]


@pytest.mark.case("the same folder sent twice")
def test_what_was_sent_before_is_said_and_is_an_error(world: World) -> None:
    again = world.headrace(
        "replay", "--data", str(world.folder), "--from", "0.9", "--keep-times", check=False
    )
    first = json.loads(
        world.headrace(
            "replay", "--data", str(world.folder), "--from", "0.9", "--allow-known", "--keep-times", "--json"
        ).stdout
    )
    assert first["num_events"] == 240
    assert first["taken"] == {"num_learned": 0, "num_known": 240, "num_refused": 0}
    assert again.returncode == 1
    assert "240 of 240 events were known already" in " ".join(again.stderr.split())


@pytest.mark.case("times in seconds and microseconds by `track`")
def test_a_time_in_another_unit_is_refused_by_name(world: World) -> None:
    for value, unit in ((1_760_000_000, "seconds"), (1_760_000_000_000_000, "microseconds")):
        done = world.headrace("track", "u1", "i1", "--time-ms", str(value), check=False)
        assert done.returncode == 1
        assert f"looks like {unit} since 1970: it must be milliseconds" in " ".join(done.stderr.split())


@pytest.mark.case("k = 5, exclude 92 of 100 items; the same with 98; one user with the whole catalogue")
def test_a_shortfall_is_named(world: World) -> None:
    everything = [f"i{n}" for n in range(100)]
    for num_excluded, k in ((92, 5), (98, 5)):
        request = RecommendRequest(user_id="u9", k=k, exclude_item_ids=everything[:num_excluded])
        answer = world.gateway.Recommend(request, timeout=30)
        found = [one.item_id for one in answer.recommendations]
        assert len(found) <= k
        assert not set(found) & set(everything[:num_excluded])
        assert (answer.shortfall_reason == ShortfallReason.SHORTFALL_REASON_FILTERED) == (len(found) < k)
    fields = {
        "user_id": "owns all",
        "action": Action.ACTION_PURCHASE,
        "event_time_ms": time.time_ns() // 1_000_000,
    }
    heavy = [Event(event_id=f"h{n}", item_id=item, **fields) for n, item in enumerate(everything * 3)]
    world.send(heavy)
    until(lambda: world.num_events("owns all") == len(heavy), "the whole history")
    answer = world.recommend("owns all", k=5)
    found = [one.item_id for one in answer.recommendations]
    assert not set(found) & set(everything)
    assert (answer.shortfall_reason == ShortfallReason.SHORTFALL_REASON_FILTERED) == (len(found) < 5)
