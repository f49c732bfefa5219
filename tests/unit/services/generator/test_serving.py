"""The generator behind its RPC: batches answer what single requests would."""

import pytest

from models.decoding.config import SearchConfig
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_DENSE
from services.generator.serving import GeneratorServing
from services.metrics import INVALID_SIDS, USER_STATES
from services.model_host.host import ModelHost
from services.wire.user_key import user_key
from streaming.messages.meaning import EventMeaning
from tests.factories import MODEL, make_history, make_release


@pytest.fixture
def serving() -> GeneratorServing:
    serving = GeneratorServing(SearchConfig(beam=10, num_dense=10), EventMeaning())
    host = ModelHost(serving)
    host.swap(host.load(make_release("one")))
    return serving


def request_of(*numbers: int, **more: object) -> GenerateRequest:
    return GenerateRequest(history=make_history(*numbers), num_candidates=10, **more)  # type: ignore[arg-type]


def assert_same(one: GenerateResponse, other: GenerateResponse) -> None:
    """The same items; scores and state equal up to what another shape or format of a product changes."""
    mine, theirs = one.candidates, other.candidates
    assert list(mine.item_ids) == list(theirs.item_ids)
    assert list(mine.source_masks) == list(theirs.source_masks)
    assert list(mine.beam_scores) == pytest.approx(list(theirs.beam_scores), abs=5e-3, nan_ok=True)
    assert (one.release_id, one.num_known_events) == (other.release_id, other.num_known_events)
    assert len(one.user_state) == len(other.user_state) == 4 * MODEL.d_model


def test_each_answer_of_a_batch_is_its_own(serving: GeneratorServing) -> None:
    requests = [
        request_of(1, 2, 3),
        request_of(),
        request_of(7, exclude_item_ids=["item-4", "item-5"]),
        request_of(*range(30)),
        request_of(1, 777, 2),
    ]
    together = serving.generate_many(requests)
    alone = [serving.generate_many([request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)
    assert together[2].num_known_events == 1
    assert {"item-4", "item-5"}.isdisjoint(together[2].candidates.item_ids)
    assert together[4].num_known_events == 2


def test_the_kind_of_a_request_is_what_a_search_has_one_of(serving: GeneratorServing) -> None:
    defaults = serving.kind_of(GenerateRequest())
    assert defaults == serving.kind_of(request_of(1, 2))
    assert defaults != serving.kind_of(GenerateRequest(num_candidates=11))
    assert defaults != serving.kind_of(GenerateRequest(beam=11))
    assert defaults != serving.kind_of(GenerateRequest(disabled_sources=[CANDIDATE_SOURCE_DENSE]))


def test_an_item_whose_semantic_id_is_not_its_own_is_counted_and_not_answered(
    serving: GeneratorServing,
) -> None:
    (before,) = serving.generate_many([request_of(1, 2)])
    wrong = before.candidates.item_ids[0]
    catalogue = serving._live.catalogue  # type: ignore[union-attr]
    row = catalogue.row(wrong)
    catalogue._codes_NC[row, 1] = (catalogue._codes_NC[row, 1] + 1) % 8
    counted = INVALID_SIDS._value.get()
    (after,) = serving.generate_many([request_of(1, 2)])
    assert INVALID_SIDS._value.get() == counted + 1
    assert wrong not in after.candidates.item_ids
    assert len(after.candidates.item_ids) == len(before.candidates.item_ids) - 1


def test_a_kept_user_gets_what_a_stranger_with_the_same_past_gets() -> None:
    keeping = GeneratorServing(SearchConfig(beam=10, num_dense=10), EventMeaning(), max_kept_users=10)
    host = ModelHost(keeping)
    host.swap(host.load(make_release("one")))
    key = user_key("somebody")
    hits = USER_STATES.labels("hit")
    before = hits._value.get()
    for past in ((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4), tuple(range(25))):
        kept = keeping.generate_many([request_of(*past, user_key=key)])[0]
        assert_same(kept, keeping.generate_many([request_of(*past)])[0])
    assert hits._value.get() == before + 2

    host.swap(host.load(make_release("two", seed=2)))
    kept = keeping.generate_many([request_of(*range(25), user_key=key)])[0]
    assert_same(kept, keeping.generate_many([request_of(*range(25))])[0])
