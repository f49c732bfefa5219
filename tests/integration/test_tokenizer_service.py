"""The tokenizer against a real broker: new items get stable codes within a second, known ones keep theirs."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from kafka import KafkaConsumer, TopicPartition

from models.networks.config import ModelConfig
from protos.headrace.v1.items_pb2 import Item, ItemSid, SemanticId
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from protos.headrace.v1.tokenizer_pb2 import DetokenizeRequest, GetCodebookRequest, TokenizeRequest
from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from services.cli.replay import announce
from services.releases.publisher import ReleasePublisher
from services.settings import Settings
from services.tokenizer.__main__ import serve
from streaming.clients.dead_letter import list_dead_letters
from streaming.clients.follow import read_to_end
from streaming.clients.producer import Producer
from streaming.messages.topics import ITEMS, SEMANTIC_IDS, dead_letter_topic
from tests.factories import MODEL, make_catalogue, make_content, make_item, make_release
from tests.integration.serving import (
    make_settings,
    own_broker,
    ready,
    send,
    serving,
    until,
    violated_fields,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with own_broker(tmp_path / "broker") as bootstrap:
        yield make_settings(bootstrap, tmp_path)


async def announced(settings: Settings, item_id: str, *, count: int = 1) -> list[ItemSid]:
    """The records of `semantic-ids` for an item, once there are `count`."""

    async def published() -> list[ItemSid]:
        bootstrap = settings.broker.bootstrap_servers
        records = await asyncio.to_thread(read_to_end, bootstrap, SEMANTIC_IDS)
        found = [record.message for record in records if record.message.item_id == item_id]
        return found if len(found) >= count else []

    found: list[ItemSid] = await until(published)
    return found


async def test_items_get_codes_and_keep_them(settings: Settings) -> None:
    early, late, narrow = make_content(3, seed=7)
    publisher = ReleasePublisher(settings)
    async with serving("tokenizer", serve, settings) as connection:
        stub = TokenizerServiceStub(connection)
        await asyncio.to_thread(send, settings, ITEMS, ("early", make_item("early", early)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Tokenize(TokenizeRequest(item_ids=["early"]))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(publisher.publish, make_release("tok-1"), RELEASE_STATE_LIVE)
        await ready(connection)
        first = (await announced(settings, "early"))[0]

        started = time.monotonic()
        # a known item is not announced again, a new one is
        known = make_item("item-5", make_catalogue().content_NE[5])
        await asyncio.to_thread(send, settings, ITEMS, ("item-5", known), ("late", make_item("late", late)))

        async def has_codes() -> bool:
            return "late" in (await stub.Tokenize(TokenizeRequest(item_ids=["late"]))).sids

        await until(has_codes)
        assert time.monotonic() - started < 5.0
        await check_requests(stub, first)
        await check_changes(stub, settings, known)

        # no vector of the codebook's width, and texts are not embedded to it; and no item at all
        await asyncio.to_thread(send, settings, ITEMS, ("odd", make_item("odd", narrow[:3])), ("", Item()))

        async def are_rejected() -> bool:
            return await reasons(settings) == ["invalid", "wrong_width"]

        await until(are_rejected)

    # a new process finds the codes of the old one
    async with serving("tokenizer", serve, settings) as connection:
        stub = TokenizerServiceStub(connection)
        await ready(connection)

        async def again() -> bool:
            sids = (await stub.Tokenize(TokenizeRequest(item_ids=["early", "late"]))).sids
            return len(sids) == 2 and sids["early"] == first.sid

        await until(again)
        await check_new_codebook(stub, settings, publisher, first)
    # what was rejected before was not rejected again
    letters = await asyncio.to_thread(read_dead_letters, settings)
    assert letters == 2
    assert len(await announced(settings, "late")) == 2


async def test_replay_announces_what_a_release_knows_and_nobody_announced(settings: Settings) -> None:
    """Else nobody knows their titles, and a stranger's answer is empty."""
    known = make_item("item-5", make_catalogue().content_NE[5])
    items = [known, make_item("new", make_content(1, seed=7)[0])]
    await asyncio.to_thread(ReleasePublisher(settings).publish, make_release("tok-1"), RELEASE_STATE_LIVE)

    def send_all() -> int:
        with Producer(settings.broker.bootstrap_servers) as producer:
            return announce(settings, producer, items, lambda name, done, total: None)

    async with serving("tokenizer", serve, settings) as connection:
        await ready(connection)
        assert [await asyncio.to_thread(send_all) for _ in range(2)] == [2, 0]
    records = await asyncio.to_thread(read_to_end, settings.broker.bootstrap_servers, ITEMS)
    assert sorted(record.message.item_id for record in records) == ["item-5", "new"]


async def test_who_gets_no_code_from_a_new_codebook_is_a_dead_letter_as_it_came(settings: Settings) -> None:
    contents = make_content(30, seed=5)
    items = [make_item(f"new-{n}", contents[n]) for n in range(30)]
    small = replace(MODEL, codebook_size=4)  # 64 codes, 50 of them of the release's items
    crowded = make_release("tok-2", parent="tok-1", catalogue=make_catalogue(model=small), model=small)
    publisher = ReleasePublisher(settings)
    await asyncio.to_thread(publisher.publish, make_release("tok-1"), RELEASE_STATE_LIVE)
    async with serving("tokenizer", serve, settings) as connection:
        stub = TokenizerServiceStub(connection)
        await ready(connection)
        await asyncio.to_thread(send, settings, ITEMS, *((item.item_id, item) for item in items))
        await announced(settings, "new-29")
        # withdrawn: nobody needs to hear of it
        await asyncio.to_thread(withdraw, settings, "new-29")
        await announced(settings, "new-29", count=2)
        await asyncio.to_thread(publisher.publish, crowded, RELEASE_STATE_LIVE)

        async def is_live() -> bool:
            return (await stub.GetCodebook(GetCodebookRequest())).release_id == "tok-2"

        await until(is_live)
        assert (await stub.GetCodebook(GetCodebookRequest())).num_items == 64
        with_codes = (await stub.Tokenize(TokenizeRequest(item_ids=[item.item_id for item in items]))).sids
        rejected = {item.item_id: item for item in items[:-1] if item.item_id not in with_codes}
        assert len(with_codes) == 14

        async def are_rejected() -> bool:
            return len(await reasons(settings)) == len(rejected)

        await until(are_rejected)
    letters = await asyncio.to_thread(list_dead_letters, settings.broker.bootstrap_servers, ITEMS)
    assert {letter.reason for letter in letters} == {"codebook_full"}
    sent = [Item.FromString(letter.value or b"") for letter in letters]
    assert {item.item_id: item for item in sent} == rejected


def withdraw(settings: Settings, item_id: str) -> None:
    with Producer(settings.broker.bootstrap_servers) as producer:
        producer.send_raw(ITEMS, item_id.encode(), None)
        producer.flush()


async def reasons(settings: Settings) -> list[str]:
    letters = await asyncio.to_thread(list_dead_letters, settings.broker.bootstrap_servers, ITEMS)
    return sorted(letter.reason for letter in letters)


def read_dead_letters(settings: Settings) -> int:
    """How many records are in the dead-letter topic of `items`, repeated ones too."""
    consumer = KafkaConsumer(bootstrap_servers=settings.broker.bootstrap_servers)
    try:
        partition = TopicPartition(dead_letter_topic(ITEMS), 0)
        return int(consumer.end_offsets([partition])[partition])
    finally:
        consumer.close()


async def check_requests(stub: TokenizerServiceStub, first: ItemSid) -> None:
    sids = (await stub.Tokenize(TokenizeRequest(item_ids=["early", "item-0", "nobody"]))).sids
    assert set(sids) == {"early", "item-0"}
    assert sids["early"] == first.sid
    foreign = SemanticId(codebook_version="another", codes=first.sid.codes)
    asked = [sids["item-0"], SemanticId(codes=[7, 7, 7]), sids["early"], foreign, SemanticId(codes=[900])]
    answer = await stub.Detokenize(DetokenizeRequest(sids=asked))
    assert [answer.item_ids[i] for i in (0, 2, 3, 4)] == ["item-0", "early", "", ""]
    codebook = await stub.GetCodebook(GetCodebookRequest())
    assert codebook.release_id == "tok-1"
    assert codebook.num_items == 52
    assert len(codebook.levels) == 2
    assert codebook.levels[0].quantisation_error > codebook.levels[1].quantisation_error > 0
    assert 0 < codebook.levels[0].usage_ratio <= 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(TokenizeRequest(item_ids=["x" * 300]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(caught.value) == ["item_ids[0]"]


async def check_changes(stub: TokenizerServiceStub, settings: Settings, known: Item) -> None:
    before = (await stub.Tokenize(TokenizeRequest(item_ids=["item-5"]))).sids["item-5"]
    known.unavailable = True
    await asyncio.to_thread(send, settings, ITEMS, ("item-5", known))
    gone = await announced(settings, "item-5")
    assert (len(gone), gone[0].unavailable, gone[0].sid) == (1, True, before)
    other = make_item("item-5", make_content(1, seed=8)[0])
    await asyncio.to_thread(send, settings, ITEMS, ("item-5", other))
    changed = (await announced(settings, "item-5", count=2))[-1]
    assert (changed.unavailable, changed.sid) == (False, before)
    assert list(changed.content) == pytest.approx(list(other.embeddings[0].values), abs=1e-5)


async def check_new_codebook(
    stub: TokenizerServiceStub, settings: Settings, publisher: ReleasePublisher, first: ItemSid
) -> None:
    bundle = make_release("tok-2", parent="tok-1", catalogue=make_catalogue(codebook_seed=1))
    await asyncio.to_thread(publisher.publish, bundle, RELEASE_STATE_LIVE)
    moved = (await announced(settings, "early", count=2))[-1]
    assert moved.sid.codebook_version == bundle.catalogue.codebook.version != first.sid.codebook_version
    assert moved.announced_time_ms == first.announced_time_ms
    sids = (await stub.Tokenize(TokenizeRequest(item_ids=["early"]))).sids
    assert sids["early"] == moved.sid


async def test_texts_are_embedded(settings: Settings) -> None:
    model = ModelConfig(
        num_levels=2, codebook_size=8, d_model=32, num_layers=1, num_heads=2, max_history=20, ranker_dim=16
    )
    bundle = make_release("text-1", model=model)
    async with serving("tokenizer", serve, settings) as connection:
        await asyncio.to_thread(ReleasePublisher(settings).publish, bundle, RELEASE_STATE_LIVE)
        await ready(connection)
        lipsticks = [Item(item_id=f"lip-{n}", title=f"Red lipstick {n}", brand="Acme") for n in range(2)]
        drill = Item(item_id="drill", title="Cordless drill, 18 volts")
        items = [(item.item_id, item) for item in (*lipsticks, drill)]
        await asyncio.to_thread(send, settings, ITEMS, *items)
        red, redder, tool = [(await announced(settings, item_id))[0].content for item_id, _ in items]

    def cosine(one: object, other: object) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))  # type: ignore[call-overload]

    assert cosine(red, red) == pytest.approx(1.0, abs=1e-3)
    assert cosine(red, redder) > 0.8 > cosine(red, tool)
