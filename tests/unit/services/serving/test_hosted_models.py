"""One process answers what a generator and a ranker of their own answer, and less where a part fails."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from models.decoding.config import SearchConfig
from protos.headrace.v1.items_pb2 import Item, ItemSid
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_NEW
from services.errors import DeadlineExpired
from services.gateway.models import Ask, PairedModels
from services.gateway.ranking import RankedItem, Ranking
from services.generator.servicer import GeneratorServicer
from services.generator.serving import GeneratorServing
from services.model_host.host import ModelHost
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.ranker.servicer import RankerServicer
from services.ranker.serving import RankerServing
from services.serving.hosted_models import HostedModels
from services.wire.translate import item_sid
from streaming.messages.meaning import EventMeaning
from tests.factories import TIME_MS, make_catalogue, make_content, make_history, make_release

SEARCH = SearchConfig(beam=10, num_dense=10)


class Process:
    """A generator and a ranker on one host, as gRPC would reach them and as their own process does."""

    def __init__(self, thread: ModelThread) -> None:
        self.generator = GeneratorServing(SEARCH, EventMeaning(), max_kept_users=5)
        self.ranker = RankerServing(100, search=SEARCH, meaning=EventMeaning())
        self.host = ModelHost(self.generator, self.ranker)
        searches = MicroBatcher(
            thread, self.generator.generate_many, kind_of=self.generator.kind_of, max_batch=4
        )
        ranks: MicroBatcher[Any, Any] = MicroBatcher(
            thread, self.ranker.rank_many, kind_of=lambda request: request.release_id, max_batch=4
        )
        self.generate = GeneratorServicer(self.generator, searches).answer
        self.rank = RankerServicer(self.ranker, ranks, lambda: "").answer
        self.models = HostedModels(
            self.host,
            self.generator,
            self.ranker,
            thread,
            paired=PairedModels(self.generate, self.rank),
            max_batch=4,
        )

    def take_up(self) -> None:
        self.host.swap(self.host.load(make_release("r1")))


@pytest.fixture
async def thread() -> AsyncIterator[ModelThread]:
    thread = ModelThread(1)
    yield thread
    thread.close()


def ask(*numbers: int, **fields: Any) -> Ask:
    defaults: dict[str, Any] = {
        "history": make_history(*numbers),
        "num_candidates": 10,
        "beam": 0,
        "exclude_item_ids": [f"item-{n}" for n in numbers],
        "disabled_sources": (),
        "request_time_ms": TIME_MS + 10**9,
        "user_key": 0,
    }
    return Ask(**defaults | fields)


async def ranking_of(models: HostedModels | PairedModels, request: Ask) -> tuple[list[RankedItem], Ranking]:
    ranking = await models.ranking(request, lambda: 9.0, {})
    assert ranking is not None
    return list(ranking.items), ranking


def assert_same(mine: list[RankedItem], theirs: list[RankedItem]) -> None:
    assert [(item.item_id, item.source_mask) for item in mine] == [
        (item.item_id, item.source_mask) for item in theirs
    ]
    assert [item.score for item in mine] == pytest.approx([item.score for item in theirs], abs=1e-5)


REQUESTS = [
    ask(1, 2, 3),
    ask(*range(25), user_key=7),
    ask(),
    ask(4, exclude_item_ids=[f"item-{n}" for n in range(20)]),
    ask(5, 6, disabled_sources=[CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_NEW], beam=3),
]


async def test_one_turn_says_what_two_calls_say(thread: ModelThread) -> None:
    process = Process(thread)
    process.take_up()
    paired = PairedModels(process.generate, process.rank)
    together = await asyncio.gather(*(ranking_of(process.models, request) for request in REQUESTS))
    for request, (items, ranking) in zip(REQUESTS, together, strict=True):
        assert_same(items, (await ranking_of(paired, request))[0])
        assert (ranking.release_id, ranking.degraded) == ("r1", False)
        assert {item.item_id for item in items}.isdisjoint(request.exclude_item_ids)


async def test_stages_are_told_and_explanations_are_those_of_the_pair(thread: ModelThread) -> None:
    process = Process(thread)
    process.take_up()
    latency_ms: dict[str, float] = {}
    ranking = await process.models.ranking(ask(1, 2), lambda: 9.0, latency_ms)
    assert ranking is not None
    assert set(latency_ms) == {"generate", "rank"}
    assert all(value > 0 for value in latency_ms.values())
    best = next(iter(ranking.items))
    explained = await process.models.explain(ask(1, 2), best.item_id, lambda: 9.0)
    assert explained.item.score == pytest.approx(best.score, abs=1e-5)


async def test_processes_that_met_new_items_in_other_orders_answer_the_same(thread: ModelThread) -> None:
    """Rows of items announced after a release differ between processes: ids cross the wire."""
    one, other = Process(thread), Process(thread)
    sids = new_items(8)
    for process, order in ((one, sids), (other, sids[::-1])):
        process.take_up()
        process.host.put_items(order)
    assert one.host.live is not None
    assert other.host.live is not None
    ids = [sid.item_id for sid in sids]
    assert one.host.live.catalogue.rows(ids).tolist() != other.host.live.catalogue.rows(ids).tolist()
    across = PairedModels(one.generate, other.rank)
    for request in [*REQUESTS, ask(1, exclude_item_ids=ids[:3]), ask(*range(50), exclude_item_ids=ids[:2])]:
        items, _ = await ranking_of(one.models, request)
        assert_same(items, (await ranking_of(across, request))[0])
        assert_same(items, (await ranking_of(other.models, request))[0])
    assert {item.item_id for item in items} & set(ids)


def new_items(num_items: int) -> list[ItemSid]:
    index, content_NE = make_catalogue(), make_content(num_items, seed=5)
    ids = [f"new-{n}" for n in range(num_items)]
    index.add_many(ids, content_NE, np.full(num_items, TIME_MS))
    return [
        item_sid(
            Item(item_id=item_id),
            index.codes_NC[index.rows([item_id])[0]].tolist(),
            content_NE[n],
            index.codebook.version,
            announced_time_ms=TIME_MS,
        )
        for n, item_id in enumerate(ids)
    ]


async def test_a_ranking_that_fails_degrades_its_own_answer_alone(
    thread: ModelThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(thread)
    process.take_up()
    rank_found = process.ranker.rank_found

    def rank_most(requests: Sequence[Ask], found: Sequence[Any]) -> Any:
        if any(request.user_key == 13 for request in requests):
            raise ZeroDivisionError
        return rank_found(requests, found)

    monkeypatch.setattr(process.ranker, "rank_found", rank_most)
    asked = [ask(1, 2, user_key=key) for key in (12, 13, 14)]
    answers = await asyncio.gather(*(ranking_of(process.models, request) for request in asked))
    assert [ranking.degraded for _, ranking in answers] == [False, True, False]


async def test_what_fails_takes_no_more_with_it_than_it_must(
    thread: ModelThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(thread)
    assert await process.models.ranking(ask(1), lambda: 9.0, {}) is None  # no release yet
    process.take_up()
    with pytest.raises(DeadlineExpired):
        await process.models.ranking(ask(1), lambda: 0.0, {})
    found = process.generator.find_many([ask(1, 2)])[0].candidates.row_M
    assert process.host.live is not None
    in_order = [process.host.live.catalogue.item_ids[row] for row in found.tolist()]

    monkeypatch.setattr(process.ranker, "rank_found", failing)
    items, ranking = await ranking_of(process.models, ask(1, 2))
    assert (ranking.degraded, ranking.release_id) == (True, "r1")
    assert [item.item_id for item in items] == in_order
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)

    monkeypatch.setattr(process.generator, "find_many", failing)
    assert await process.models.ranking(ask(1, 2), lambda: 9.0, {}) is None


def failing(*_: Sequence[Any]) -> Callable[..., Any]:
    raise ZeroDivisionError
