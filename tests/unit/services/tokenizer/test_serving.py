"""The tokenizer's decisions: who gets new codes, who keeps them, whose text is looked at again."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.tokenizers.content import Space
from protos.headrace.v1.items_pb2 import Item
from services.tokenizer.content import ContentEmbedder
from services.tokenizer.serving import Moved, TokenizerServing
from streaming.messages.records import Record
from tests.factories import CONTENT_DIM, MODEL, TIME_MS, make_catalogue, make_content, make_item, make_release


class TitleEmbedder(ContentEmbedder):
    """Turns a title into the vector with that seed, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []

    def can_embed(self, space: Space) -> bool:
        return space.width == CONTENT_DIM

    def embed_many(self, items: Sequence[Item]) -> Tensor:
        self.titles += [item.title for item in items]
        return torch.stack([make_content(1, seed=len(item.title))[0] for item in items])


def record_of(item: Item, *, time_ms: int = TIME_MS + 1) -> Record:
    return Record(topic="items", partition=0, offset=0, key=item.item_id, timestamp_ms=time_ms, message=item)


def make_serving() -> tuple[TokenizerServing, TitleEmbedder]:
    embedder = TitleEmbedder()
    serving = TokenizerServing(embedder)
    index = serving.load(make_release("r"))
    assert serving.swap("r", TIME_MS, index) == Moved()
    embedder.titles.clear()
    return serving, embedder


def test_a_new_item_gets_the_first_free_code_and_keeps_it() -> None:
    serving, _ = make_serving()
    first = serving.tokenize([record_of(Item(item_id="new", title="abc"))])
    sid = first.sids[0]
    assert sid.announced_time_ms == TIME_MS + 1
    assert serving.tokens(["new", "nobody"])["new"] == sid.sid
    assert serving.detokenize([sid.sid]) == ["new"]
    # the same again, later: its text is compared when there is time, and nothing is announced
    later = record_of(Item(item_id="new", title="abc"), time_ms=TIME_MS + 9)
    again = serving.tokenize([later])
    assert (again.sids, again.deferred) == ([], [later])
    assert serving.tokenize([later], recheck=True).sids == []
    changed = record_of(Item(item_id="new", title="abcdef"), time_ms=TIME_MS + 10)
    update = serving.tokenize([changed], recheck=True).sids[0]
    assert update.sid == sid.sid
    assert update.announced_time_ms == sid.announced_time_ms
    assert list(update.content) != list(sid.content)


def test_items_of_the_release_are_not_embedded_again() -> None:
    serving, embedder = make_serving()
    old = [record_of(Item(item_id=f"item-{n}", title="x"), time_ms=TIME_MS - 5) for n in range(10)]
    done = serving.tokenize(old)
    assert (done.sids, done.deferred, done.rejected, embedder.titles) == ([], [], [], [])
    # gone from the shelf: announced at once, without its text
    gone = record_of(Item(item_id="item-3", title="x", unavailable=True), time_ms=TIME_MS - 5)
    assert [sid.unavailable for sid in serving.tokenize([gone]).sids] == [True]
    assert embedder.titles == []
    assert serving.tokenize([gone]).sids == []


def test_two_items_of_equal_content_differ_in_the_last_code() -> None:
    serving, _ = make_serving()
    content_E = make_content(1, seed=3)[0]
    done = serving.tokenize([record_of(make_item(name, content_E)) for name in ("one", "two")])
    one, two = (list(sid.sid.codes) for sid in done.sids)
    assert one[:-1] == two[:-1]
    assert one[-1] != two[-1]


def test_a_full_codebook_rejects() -> None:
    serving, _ = make_serving()
    num_codes = 8 * 8 * 8
    contents = make_content(num_codes, seed=1)
    done = serving.tokenize([record_of(make_item(f"new-{n}", contents[n])) for n in range(num_codes)])
    assert len(done.sids) == num_codes - 50
    assert {reason for _, reason, _ in done.rejected} == {"codebook_full"}


def test_a_new_codebook_gives_new_codes_to_what_it_does_not_hold() -> None:
    serving, _ = make_serving()
    old = serving.tokenize([record_of(Item(item_id="new", title="abc"))]).sids[0]
    bundle = make_release("s", catalogue=make_catalogue(codebook_seed=1))
    moved = serving.swap("s", TIME_MS, serving.load(bundle)).sids
    assert [sid.item_id for sid in moved] == ["new"]
    assert moved[0].sid.codebook_version == bundle.catalogue.codebook.version
    assert moved[0].announced_time_ms == old.announced_time_ms
    assert serving.detokenize([old.sid]) == [""]


def test_a_new_codebook_that_is_too_full_is_live_and_names_who_has_no_code() -> None:
    serving, _ = make_serving()
    contents = make_content(40, seed=5)
    known = [f"new-{n}" for n in range(40)]
    records = [record_of(make_item(name, contents[n])) for n, name in enumerate(known)]
    assert len(serving.tokenize(records).sids) == 40
    small = replace(MODEL, codebook_size=4)  # 64 codes
    bundle = make_release("s", catalogue=make_catalogue(model=small), model=small)
    moved = serving.swap("s", TIME_MS, serving.load(bundle))
    assert serving.release_id == "s"
    assert len(moved.sids) == 64 - 50
    assert [*(sid.item_id for sid in moved.sids), *moved.without_code] == known
    assert set(serving.tokens(known)) == {sid.item_id for sid in moved.sids}


def test_an_item_s_vector_is_the_one_of_the_release_s_modality() -> None:
    catalogue = make_catalogue()
    catalogue.modality = "image"
    serving = TokenizerServing(ContentEmbedder())
    serving.swap("r", TIME_MS, serving.load(make_release("r", catalogue=catalogue)))
    text_E, image_E = make_content(2, seed=9)
    both = make_item("both", text_E)
    both.embeddings.add(modality="image", values=(3 * image_E).tolist())
    narrow = Item(item_id="narrow")
    narrow.embeddings.add(modality="image", values=[1.0, 2.0])
    records = [record_of(item) for item in (both, make_item("other", text_E), narrow, Item(item_id="bare"))]
    done = serving.tokenize(records)
    assert [sid.item_id for sid in done.sids] == ["both"]
    np.testing.assert_allclose(done.sids[0].content, image_E.numpy(), atol=1e-6)
    assert [(record.message.item_id, reason) for record, reason, _ in done.rejected] == [
        ("other", "wrong_modality"),
        ("narrow", "wrong_width"),
        ("bare", "no_content"),
    ]
