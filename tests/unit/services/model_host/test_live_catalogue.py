"""The live catalogue keeps what was announced, across releases and codebooks."""

import torch

from models.catalogue.index import CatalogueIndex
from protos.headrace.v1.items_pb2 import Item, ItemSid
from services.model_host.live_catalogue import LiveCatalogue
from services.wire.translate import item_sid
from tests.factories import make_catalogue, make_content


def announce(index: CatalogueIndex, item_id: str, *, seed: int = 99, unavailable: bool = False) -> ItemSid:
    content_E = make_content(1, seed=seed)[0]
    codes = index.assign(content_E)
    item = Item(item_id=item_id, unavailable=unavailable)
    return item_sid(item, codes, content_E, index.codebook.version, announced_time_ms=7)


def test_items_announced_before_the_first_release_wait_for_it() -> None:
    live, index = LiveCatalogue(), make_catalogue()
    sid = announce(index, "new")
    assert live.put_many([sid]).inserted == []
    live.prepare(index)
    live.swap(index)
    row = index.row("new")
    assert row is not None
    assert tuple(index.codes_NC[row].tolist()) == tuple(sid.sid.codes)
    assert index.announced_ms_N[row] == 7


def test_live_inserts_reach_the_next_release() -> None:
    live, first, second = LiveCatalogue(), make_catalogue(), make_catalogue()
    live.swap(first)
    assert [s.item_id for s in live.put_many([announce(first, "new")]).inserted] == ["new"]
    live.prepare(second)
    # between preparation and swap
    live.put_many([announce(first, "newer", seed=98)])
    assert second.row("newer") is None
    live.swap(second)
    assert second.row("new") is not None
    assert second.row("newer") is not None


def test_availability_and_content_are_updated() -> None:
    live, index = LiveCatalogue(), make_catalogue()
    live.swap(index)
    codes = tuple(index.codes_NC[3].tolist())
    gone = item_sid(
        Item(item_id="item-3", unavailable=True),
        codes,
        index.content_NE[3],
        index.codebook.version,
        announced_time_ms=0,
    )
    changes = live.put_many([gone])
    assert (changes.availability_changed, changes.changed_rows, changes.inserted) == (True, [], [])
    assert not index.available_N[3]
    other = make_content(1, seed=5)[0]
    changed = item_sid(Item(item_id="item-3"), codes, other, index.codebook.version, announced_time_ms=0)
    assert live.put_many([changed]).changed_rows == [3]
    assert index.available_N[3]
    assert torch.equal(index.content_NE[3], other)
    # and a release that was cut before all this gets it too
    older = make_catalogue()
    live.swap(older)
    assert torch.equal(older.content_NE[3], other)


def test_another_codebook_waits_for_its_release() -> None:
    live, old = LiveCatalogue(), make_catalogue()
    live.swap(old)
    new = make_catalogue(codebook_seed=1)
    assert old.codebook.version != new.codebook.version
    sid = announce(new, "new")
    assert live.put_many([sid]).inserted == []
    assert old.row("new") is None
    live.swap(new)
    assert new.row("new") is not None


def test_an_item_s_codes_under_two_codebooks_are_both_kept() -> None:
    live, now, later = LiveCatalogue(), make_catalogue(), make_catalogue(codebook_seed=1)
    refreshed = make_catalogue(codebook_seed=2)
    sids = [announce(index, "new") for index in (later, refreshed, now)]
    live.put_many(sids)
    for index in (now, later, refreshed):
        live.swap(index)
        row = index.row("new")
        assert row is not None
        given = {sid.sid.codebook_version: sid.sid.codes for sid in sids}
        assert given[index.codebook.version] == (index.codes_NC[row].tolist())


def test_contradicting_codes_are_refused() -> None:
    live, index = LiveCatalogue(), make_catalogue()
    live.swap(index)
    taken = tuple(index.codes_NC[0].tolist())
    thief = item_sid(
        Item(item_id="thief"), taken, make_content(1)[0], index.codebook.version, announced_time_ms=0
    )
    changes = live.put_many([thief])
    assert changes.num_refused == 1
    assert index.row("thief") is None
    assert index.row_of(taken) == 0


def test_what_is_no_id_of_the_live_codebook_is_refused_and_waits_for_nothing() -> None:
    live, index = LiveCatalogue(), make_catalogue()
    live.swap(index)
    good = announce(index, "new")
    short, far, narrow = ItemSid(), ItemSid(), ItemSid()
    for sid in (short, far, narrow):
        sid.CopyFrom(good)
    short.sid.codes.pop()
    far.sid.codes[0] = 1_000
    narrow.content.pop()
    changes = live.put_many([short, far, narrow])
    assert changes.num_refused == 3
    assert index.row("new") is None
    assert live.swap(make_catalogue()).num_refused == 0


def test_a_withdrawal_counts_though_its_codes_contradict() -> None:
    for content_E in (make_content(1, seed=99)[0], make_content(1, seed=5)[0]):
        live, index = LiveCatalogue(), make_catalogue()
        live.swap(index)
        sid = announce(index, "new")
        live.put_many([sid])
        codes = list(sid.sid.codes)
        codes[-1] = (codes[-1] + 1) % 8
        gone = item_sid(
            Item(item_id="new", unavailable=True),
            codes,
            content_E,
            index.codebook.version,
            announced_time_ms=0,
        )
        changes = live.put_many([gone])
        assert (changes.availability_changed, changes.num_refused) == (True, 1)
        row = index.row("new")
        assert row is not None
        assert not index.available_N[row]
        assert index.codes_NC[row].tolist() == list(sid.sid.codes)


def test_of_one_item_the_newest_versions_wait() -> None:
    live, index = LiveCatalogue(), make_catalogue()
    sids = [announce(index, "new") for _ in range(12)]
    for n, sid in enumerate(sids[:-1]):
        sid.sid.codebook_version = f"v{n}"
    assert live.put_many([sids[-1], *sids[:-1]]).num_refused == 4
    live.swap(index)
    assert index.row("new") is None, "eight newer versions came"
    live = LiveCatalogue()
    live.put_many([*sids[:-1], sids[-1]])
    live.swap(index)
    assert index.row("new") is not None
