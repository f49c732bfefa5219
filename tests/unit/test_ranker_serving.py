"""The ranker as it is served: the generator's state of the user, excluded items, what is answered."""

import numpy as np
import pytest
import torch

from models.release import ReleaseBundle
from protos.headrace.v1.generator_pb2 import Candidate
from protos.headrace.v1.ranker_pb2 import RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_DENSE
from services import translate
from services.ranker.serving import RankerServing
from tests.factories import MODEL, TIME_MS, make_history, make_release


@pytest.fixture
def bundle() -> ReleaseBundle:
    return make_release("r1")


@pytest.fixture
def serving(bundle: ReleaseBundle) -> RankerServing:
    serving = RankerServing(100)
    serving.swap(serving.load(bundle))
    return serving


def make_request(**fields: object) -> RankRequest:
    beam = [Candidate(item_id=f"item-{n}", sources=[CANDIDATE_SOURCE_BEAM], beam_score=-n) for n in (3, 4, 5)]
    dense = [Candidate(item_id=f"item-{n}", sources=[CANDIDATE_SOURCE_DENSE]) for n in range(5, 30)]
    return RankRequest(
        history=make_history(1, 2, 7), candidates=[*beam, *dense], request_time_ms=TIME_MS, **fields
    )


def scores(response: RankResponse) -> dict[str, float]:
    return {item.item_id: item.score for item in response.items}


def state_bytes(bundle: ReleaseBundle, scale: float = 1.0) -> bytes:
    request = make_request()
    history = translate.history_batch(request.history, bundle.catalogue, MODEL.max_history)
    with torch.no_grad():
        item_ND = bundle.recommender.encode_items(bundle.catalogue.codes_NC, bundle.catalogue.content_NE)
        state_1D = bundle.recommender.last_state(history, item_ND)
    return (scale * state_1D[0]).numpy().astype("<f4").tobytes()


def test_the_generators_state_takes_the_place_of_our_own(
    serving: RankerServing, bundle: ReleaseBundle
) -> None:
    own = scores(serving.rank(make_request()))
    given = scores(serving.rank(make_request(release_id="r1", user_state=state_bytes(bundle))))
    assert given == pytest.approx(own, abs=1e-5)
    other = scores(serving.rank(make_request(release_id="r1", user_state=state_bytes(bundle, -1.0))))
    assert other != pytest.approx(own, abs=1e-2)


def test_a_state_that_does_not_fit_is_not_used(serving: RankerServing, bundle: ReleaseBundle) -> None:
    own = scores(serving.rank(make_request()))
    flipped = state_bytes(bundle, -1.0)
    not_finite = np.full(MODEL.d_model, np.nan, dtype="<f4").tobytes()
    for fields in (
        {"user_state": flipped},  # of no release that is named
        {"release_id": "r1", "user_state": flipped[:-4]},
        {"release_id": "r1", "user_state": not_finite},
    ):
        assert scores(serving.rank(make_request(**fields))) == own


def test_excluded_items_are_never_answered(serving: RankerServing) -> None:
    response = serving.rank(make_request(exclude_item_ids=["item-3", "item-12", "item-0", "unheard-of"]))
    assert {"item-3", "item-12", "item-0"}.isdisjoint(scores(response))
    assert {"item-4", "item-29"} <= set(scores(response))


def test_every_item_comes_with_probabilities_and_features_only_on_demand(serving: RankerServing) -> None:
    plain, explained = serving.rank(make_request()), serving.rank(make_request(explain=True))
    assert scores(plain) == scores(explained)
    values = [item.score for item in plain.items]
    assert values == sorted(values, reverse=True)
    for item, other in zip(plain.items, explained.items, strict=True):
        assert len(item.action_probabilities) == 7
        assert all(0 < p < 1 for p in item.action_probabilities.values())
        assert not item.features
        assert len(other.features) > 10
