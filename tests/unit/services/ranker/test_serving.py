"""The ranker as it is served: the generator's state of the user, excluded items, what is answered."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from models.arrays import Int64Array
from models.artifacts.release import ReleaseBundle
from models.decoding.config import SearchConfig
from models.decoding.cpu_engine import CpuEngine
from models.networks.ranker import Ranker
from models.ranking.live_sources import LIVE_SOURCES
from models.ranking.live_statistics import ItemStatistics, LiveStatistics
from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from protos.headrace.v1.generator_pb2 import Candidates
from protos.headrace.v1.ranker_pb2 import RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_DENSE
from services.errors import WrongRelease
from services.model_host.host import ModelHost
from services.ranker.serving import RankerServing
from services.wire import translate
from services.wire.source_masks import mask_of
from streaming.messages.meaning import EventMeaning
from tests.factories import MODEL, TIME_MS, make_history, make_release


@pytest.fixture
def bundle() -> ReleaseBundle:
    return make_release("r1")


@pytest.fixture
def serving() -> RankerServing:
    return RankerServing(100, search=SearchConfig(), meaning=EventMeaning())


@pytest.fixture
def host(serving: RankerServing, bundle: ReleaseBundle) -> ModelHost:
    """The ranker's, with a release live."""
    host = ModelHost(serving)
    host.swap(host.load(bundle))
    return host


pytestmark = pytest.mark.usefixtures("host")


def make_request(**fields: object) -> RankRequest:
    candidates = Candidates(
        item_ids=[f"item-{n}" for n in range(3, 30)],
        source_masks=[mask_of(CANDIDATE_SOURCE_BEAM)] * 3 + [mask_of(CANDIDATE_SOURCE_DENSE)] * 24,
        beam_scores=[-3.0, -4.0, -5.0] + [math.nan] * 24,
    )
    defaults: dict[str, object] = {
        "history": make_history(1, 2, 7), "candidates": candidates, "request_time_ms": TIME_MS
    }  # fmt: skip
    return RankRequest(**defaults | fields)  # type: ignore[arg-type]


def rank(serving: RankerServing, request: RankRequest) -> RankResponse:
    return serving.rank_many([request])[0]


def scores(response: RankResponse) -> dict[str, float]:
    return dict(zip(response.item_ids, response.scores, strict=True))


def state_bytes(bundle: ReleaseBundle, scale: float = 1.0) -> bytes:
    request = make_request()
    past = translate.known_past(request.history, bundle.catalogue, EventMeaning())
    history = translate.past_batch([past], MODEL.max_history)
    state_1D = CpuEngine(bundle.recommender, bundle.catalogue).states(history).state_BD
    return (scale * state_1D[0].float()).numpy().astype("<f4").tobytes()


def test_the_generators_state_takes_the_place_of_our_own(
    serving: RankerServing, bundle: ReleaseBundle
) -> None:
    own = scores(rank(serving, make_request()))
    given = scores(rank(serving, make_request(release_id="r1", user_state=state_bytes(bundle))))
    assert given == pytest.approx(own, abs=1e-5)
    other = scores(rank(serving, make_request(release_id="r1", user_state=state_bytes(bundle, -1.0))))
    assert other != pytest.approx(own, abs=1e-2)


def test_a_state_that_does_not_fit_is_not_used(serving: RankerServing, bundle: ReleaseBundle) -> None:
    own = scores(rank(serving, make_request()))
    flipped = state_bytes(bundle, -1.0)
    not_finite = np.full(MODEL.d_model, np.nan, dtype="<f4").tobytes()
    for fields in (
        {"user_state": flipped},  # of no release that is named
        {"release_id": "r1", "user_state": flipped[:-4]},
        {"release_id": "r1", "user_state": not_finite},
        {"release_id": "r1", "user_state": state_bytes(bundle, 3e38)},
    ):
        assert scores(rank(serving, make_request(**fields))) == own


def test_the_release_before_answers_those_who_began_with_it_and_is_forgotten_then(
    serving: RankerServing, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.swap(host.load(make_release("r2")))
    assert rank(serving, make_request(release_id="r1")).release_id == "r1"
    assert serving.has("r1")
    later_s = time.monotonic() + 60
    monkeypatch.setattr("services.ranker.serving.time.monotonic", lambda: later_s)
    assert rank(serving, make_request()).release_id == "r2"
    assert not serving.has("r1")
    with pytest.raises(WrongRelease):
        rank(serving, make_request(release_id="r1"))


def test_a_refused_release_leaves_nothing_of_its_statistics() -> None:
    refused = make_release("child", parent="parent", offsets={"interactions/0": 100})
    for n in range(9):
        refused.statistics.update(f"user-{n}", "item-1", ACTION_CLICK, TIME_MS)
    serving, alone = (RankerServing(100, search=SearchConfig(), meaning=EventMeaning()) for _ in range(2))
    host, other = ModelHost(serving), ModelHost(alone)
    with pytest.raises(ValueError, match="features"):
        host.load(replace(refused, ranker=Ranker(MODEL, 3)))
    served = make_release("parent")
    loaded = host.load(served)
    assert loaded[1][0].scorer.statistics is served.statistics
    host.swap(loaded)
    other.swap(other.load(make_release("parent")))
    assert scores(rank(serving, make_request())) == scores(rank(alone, make_request()))


def test_the_next_release_keeps_the_statistics_that_are_live(serving: RankerServing, host: ModelHost) -> None:
    event = Event(event_id="e", user_id="u", item_id="item-9", action=ACTION_CLICK, event_time_ms=TIME_MS)
    serving.put_events([event])
    loaded = host.load(make_release("r2"))
    statistics = loaded[1][0].scorer.statistics
    assert statistics.num_events == 2
    host.swap(loaded)
    event.event_id = "f"
    serving.put_events([event])
    assert statistics.num_events == 3


class CountingStatistics(LiveStatistics):
    """Counts who reads them."""

    num_reads = 0

    def items(self, row_M: Int64Array, time_ms: int) -> ItemStatistics:
        self.num_reads += 1
        return super().items(row_M, time_ms)


def test_loading_beside_the_model_thread_reads_no_live_statistics(bundle: ReleaseBundle) -> None:
    live = CountingStatistics(bundle.statistics.config)
    serving = RankerServing(100, search=SearchConfig(), meaning=EventMeaning())
    host = ModelHost(serving)
    host.swap(host.load(replace(bundle, statistics=live)))
    num_reads = live.num_reads
    loaded = host.load(make_release("r2"))
    assert live.num_reads == num_reads
    host.swap(loaded)
    rank(serving, make_request())
    assert live.num_reads > num_reads


def test_excluded_items_are_never_answered(serving: RankerServing) -> None:
    response = rank(serving, make_request(exclude_item_ids=["item-3", "item-12", "item-0", "unheard-of"]))
    assert {"item-3", "item-12", "item-0"}.isdisjoint(scores(response))
    assert {"item-4", "item-29"} <= set(scores(response))


def test_only_the_item_in_question_is_explained(serving: RankerServing) -> None:
    plain, explained = rank(serving, make_request()), rank(serving, make_request(explain_item_id="item-4"))
    assert not plain.HasField("explanation")
    assert scores(plain) == scores(explained)
    assert list(plain.scores) == sorted(plain.scores, reverse=True)
    assert len(explained.explanation.action_probabilities) == 7
    assert all(0 < p < 1 for p in explained.explanation.action_probabilities.values())
    assert len(explained.explanation.features) > 10
    assert not rank(serving, make_request(explain_item_id="unheard-of")).HasField("explanation")


def test_each_answer_of_a_batch_is_its_own(serving: RankerServing, bundle: ReleaseBundle) -> None:
    few = Candidates(item_ids=["item-8"], source_masks=[4], beam_scores=[math.nan])
    requests = [
        make_request(),
        make_request(history=make_history(*range(9)), exclude_item_ids=["item-3"]),
        make_request(history=[], candidates=few, explain_item_id="item-8"),
        make_request(candidates=None, disabled_sources=LIVE_SOURCES),
    ]
    together = serving.rank_many(requests)
    for request, response in zip(requests, together, strict=True):
        alone = rank(serving, request)
        assert scores(response) == pytest.approx(scores(alone), abs=1e-5)
        assert list(response.source_masks) == list(alone.source_masks)
        assert response.HasField("explanation") == alone.HasField("explanation")
    assert not together[3].item_ids
    assert "item-3" not in together[1].item_ids
    with_states = [make_request(release_id="r1", user_state=state_bytes(bundle, s)) for s in (1.0, -1.0)]
    for request, response in zip(with_states, serving.rank_many(with_states), strict=True):
        assert scores(response) == pytest.approx(scores(rank(serving, request)), abs=1e-5)
