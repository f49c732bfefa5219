"""What every engine does with a recommender; the ranker's half is `test_engines_ranking.py`."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.catalogue.index import CatalogueIndex
from models.decoding.beam_search import beam_search
from models.decoding.beam_search_reference import beam_search_reference
from models.decoding.engine import Engine
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from tests.contract.engines import ENGINES, SERVED, World, histories
from tests.factories import MODEL, NUM_ITEMS, make_catalogue, make_content


def test_states_are_those_of_the_network(world: World) -> None:
    history = histories([3, 9, 4], [7], [])
    with torch.no_grad():
        expected_BD = world.recommender.last_state(history, world.encoded()[0])
    torch.testing.assert_close(world.engine.states(history).state_BD, expected_BD, atol=1e-4, rtol=1e-4)
    assert torch.equal(expected_BD[2], world.recommender.empty_state)


def test_extended_states_are_those_of_the_whole_histories(world: World) -> None:
    known, new = histories([3], [7, 1], []), histories([9, 4], [], [5])
    whole = histories([3, 9, 4], [7, 1], [5])
    whole.time_ms_BT[0, 1:] = new.time_ms_BT[0]
    before = world.engine.states(known)
    extended = world.engine.extend(before, new)
    assert extended.length_B.tolist() == [3, 2, 1]
    expected_BD = world.engine.states(whole).state_BD
    torch.testing.assert_close(extended.state_BD, expected_BD, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(before.state_BD, world.engine.states(known).state_BD)


def test_the_beam_finds_what_a_slow_search_finds(world: World) -> None:
    world.catalogue.set_available(5, False)
    state_BD = world.engine.states(histories([3, 9], [])).state_BD
    exclude = [np.array([3, 9]), np.array([0, -1, 0])]
    found = world.engine.decode(state_BD, k=7, beam=6, exclude=exclude)
    items = [
        (tuple(codes), row)
        for row, codes in enumerate(world.catalogue.codes_NC.tolist())
        if world.catalogue.available_N[row]
    ]
    decoding = world.recommender.decoder.tables().start(state_BD)
    slow = beam_search_reference(decoding.logits, items, batch_size=2, k=7, beam=6, exclude=exclude)
    for b, expected in enumerate(slow):
        kept = found.row_BK[b] >= 0
        assert found.row_BK[b][kept].tolist() == [row for row, _, _ in expected]
        scores = torch.tensor([score for _, score, _ in expected])
        torch.testing.assert_close(found.score_BK[b][kept], scores, atol=1e-4, rtol=1e-4)


def test_the_nearest_are_the_exact_ones(world: World) -> None:
    world.catalogue.set_available(5, False)
    state_BD = world.engine.states(histories([3, 9], [])).state_BD
    logits_BN = world.recommender.dense_logits(state_BD, world.encoded()[1]).detach()
    torch.testing.assert_close(world.engine.dense_logits(state_BD), logits_BN, atol=1e-4, rtol=1e-4)
    row_BM = torch.tensor([[4, 0], [1, 1]])
    some_BM = world.engine.dense_logits(state_BD, row_BM)
    torch.testing.assert_close(some_BM, logits_BN.gather(1, row_BM), atol=1e-4, rtol=1e-4)
    exclude = [np.array([1, 2]), np.array([-1])]
    logits_BN[:, 5], logits_BN[0, [1, 2]] = -torch.inf, -torch.inf
    for b, (row_K, logit_K) in enumerate(world.engine.nearest(state_BD, k=6, exclude=exclude)):
        assert row_K.tolist() == logits_BN[b].topk(6).indices.tolist()
        np.testing.assert_allclose(logit_K, logits_BN[b].topk(6).values.numpy(), rtol=1e-4, atol=1e-4)


def test_more_than_there_is_gives_all_there_is(world: World) -> None:
    state_BD = world.engine.states(histories([3])).state_BD
    everything = list(range(len(world.catalogue)))
    assert sorted(world.engine.decode(state_BD, k=500, beam=500).row_BK[0].tolist())[-len(everything) :] == (
        everything
    )
    assert sorted(world.engine.nearest(state_BD, k=500)[0][0].tolist()) == everything
    nobody = [np.array(everything)]
    assert (world.engine.decode(state_BD, k=5, beam=5, exclude=nobody).row_BK == -1).all()
    assert len(world.engine.nearest(state_BD, k=5, exclude=nobody)[0][0]) == 0


MODELS = {
    "one level": replace(MODEL, num_levels=1, codebook_size=64),
    "two codes a level": replace(MODEL, num_levels=5, codebook_size=2),
    "as it is served": replace(MODEL, num_levels=3, d_model=64, num_heads=4),
    "one head": replace(MODEL, num_heads=1, decoder_ffn_ratio=3),
    "odd widths": replace(MODEL, d_model=15, num_heads=5, ranker_dim=5, decoder_ffn_ratio=2),
}


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("num_items", [0, 1, 5, NUM_ITEMS])
@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_a_search_is_that_of_the_network_step_by_step(name: str, model: ModelConfig, num_items: int) -> None:
    world = World(ENGINES[name], model, num_items)
    world.shake(world.recommender)
    world.engine.load(world.recommender)
    for n in range(0, num_items, 7):
        world.catalogue.set_available(n, False)
    state_BD = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(2))
    for num_new in (0, 3):
        for n in range(num_new):  # they come to the tail of the trie
            content_E = make_content(num_new, seed=5)[n]
            world.catalogue.insert(f"new-{n}", world.catalogue.assign(content_E), content_E)
        some = np.arange(0, len(world.catalogue), 4)
        for exclude in (None, [some, np.array([-1, *some, *some]), np.zeros(0, np.int64)]):
            for k, beam in ((1, 1), (4, 9), (60, 60)):
                assert_same_search(world, state_BD, k, beam, exclude)


def assert_same_search(
    world: World, state_BD: torch.Tensor, k: int, beam: int, exclude: list[np.ndarray] | None
) -> None:
    found = world.engine.decode(state_BD, k=k, beam=beam, exclude=exclude)
    with torch.no_grad():
        decoding = world.recommender.decoder.tables().start(state_BD)
        expected = beam_search(
            decoding.logits, world.catalogue.trie, batch_size=len(state_BD), k=k, beam=beam, exclude=exclude
        )
    assert torch.equal(found.row_BK, expected.row_BK)
    torch.testing.assert_close(found.score_BK, expected.score_BK, atol=1e-4, rtol=1e-4)
    for one, other in zip(found.prefixes, expected.prefixes, strict=True):
        assert torch.equal(one, other)
    for beams, others in zip(found.beams, expected.beams, strict=True):
        np.testing.assert_allclose(beams.score_BK, others.score_BK, atol=1e-4, rtol=1e-4)
        kept = beams.score_BK > -np.inf
        np.testing.assert_array_equal(beams.node_BK[kept], others.node_BK[kept])


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(world: World, k: int) -> None:
    state_BD = world.engine.states(histories([3])).state_BD
    with pytest.raises(ValueError, match="at least 1"):
        world.engine.decode(state_BD, k=k, beam=5)
    with pytest.raises(ValueError, match="at least 1"):
        world.engine.nearest(state_BD, k=k)


def test_exclusions_are_one_list_for_each_request_and_ignore_what_is_no_row(world: World) -> None:
    state_BD = world.engine.states(histories([3], [4])).state_BD
    for search in (
        world.engine.nearest,
        lambda *given, **named: world.engine.decode(*given, **named, beam=9),
    ):
        with pytest.raises(ValueError):
            search(state_BD, k=5, exclude=[np.array([1])])
        search(state_BD, k=5, exclude=[np.array([-1, 10**6])] * 2)


@pytest.mark.parametrize("name", list(SERVED))
def test_items_are_encoded_alike_whoever_needs_them_first(name: str) -> None:
    served, history = World(SERVED[name]), histories([3, 9, 4])
    state_BD = served.engine.states(history).state_BD
    expected_ND = served.engine.item_ND.clone()
    calls: dict[str, Callable[[Engine], object]] = {
        "states": lambda engine: engine.states(history),
        "nearest": lambda engine: engine.nearest(state_BD, k=3),
        "dense_logits": lambda engine: engine.dense_logits(state_BD),
        "item_ND": lambda engine: engine.item_ND,
    }
    for first, call in calls.items():
        engine = SERVED[name](served.recommender, served.catalogue, None)
        call(engine)
        assert torch.equal(engine.item_ND, expected_ND), first


def test_networks_of_another_width_may_be_loaded(world: World) -> None:
    world.engine.states(histories([3]))
    wider = GenerativeRecommender(replace(MODEL, d_model=2 * MODEL.d_model)).eval()
    world.engine.load(wider)
    state_BD = world.engine.states(histories([3, 9])).state_BD
    assert state_BD.shape == (1, 2 * MODEL.d_model)
    assert len(world.engine.nearest(state_BD, k=5)[0][0]) == 5


def test_a_new_item_is_found_at_once_and_another_content_when_it_was_put(world: World) -> None:
    engine, catalogue = world.engine, world.catalogue
    state_BD = engine.states(histories([3])).state_BD
    engine.nearest(state_BD, k=3)
    content_E = functional.normalize(torch.ones(MODEL.content_dim), dim=0)
    codes = catalogue.assign(content_E)
    row = catalogue.insert("new", codes, content_E)
    assert row in engine.nearest(state_BD, k=99)[0][0]
    assert row in engine.decode(state_BD, k=99, beam=99).row_BK[0]
    assert len(engine.item_ND) == len(catalogue)
    before, others = engine.item_ND[row].clone(), engine.item_ND[:row].clone()
    catalogue.insert("new", codes, -content_E)
    engine.put_items([row])
    assert not torch.equal(engine.item_ND[row], before)
    assert torch.equal(engine.item_ND[:row], others)
    torch.testing.assert_close(engine.item_ND, world.encoded()[0], atol=1e-4, rtol=1e-4)
    catalogue.set_available(row, False)
    assert row not in engine.nearest(state_BD, k=99)[0][0]
    assert row not in engine.decode(state_BD, k=99, beam=99).row_BK[0]


def test_new_weights_count_when_they_were_loaded(world: World) -> None:
    history = histories([3, 9])
    state_BD = world.engine.states(history).state_BD
    before = world.engine.decode(state_BD, k=5, beam=8).score_BK, world.engine.item_ND.clone()
    world.shake(world.recommender)
    world.engine.load(world.recommender, world.ranker)
    assert not torch.allclose(world.engine.states(history).state_BD, state_BD)
    assert not torch.allclose(world.engine.decode(state_BD, k=5, beam=8).score_BK, before[0])
    assert not torch.allclose(world.engine.item_ND, before[1])


def test_an_answer_does_not_depend_on_its_batch(world: World) -> None:
    pasts = ([3, 9, 4], [7], [], [1, 2])
    together = world.engine.states(histories(*pasts)).state_BD
    found = world.engine.decode(together, k=5, beam=8)
    nearest = world.engine.nearest(together, k=5)
    for b, past in enumerate(pasts):
        alone = world.engine.states(histories(past)).state_BD
        torch.testing.assert_close(alone[0], together[b], atol=1e-5, rtol=1e-5)
        one = world.engine.decode(together[b : b + 1], k=5, beam=8)
        assert torch.equal(one.row_BK[0], found.row_BK[b])
        torch.testing.assert_close(one.score_BK[0], found.score_BK[b], atol=1e-5, rtol=1e-5)
        assert world.engine.nearest(together[b : b + 1], k=5)[0][0].tolist() == nearest[b][0].tolist()


@pytest.mark.parametrize("name", list(ENGINES))
def test_an_empty_catalogue_has_empty_states_and_answers_nothing(name: str) -> None:
    world = World(ENGINES[name])
    codebook = make_catalogue().codebook
    engine = ENGINES[name](world.recommender, CatalogueIndex(codebook), None)
    state_BD = engine.states(histories([])).state_BD
    torch.testing.assert_close(state_BD[0], world.recommender.empty_state.detach())
    assert (engine.decode(state_BD, k=5, beam=5).row_BK == -1).all()
    assert len(engine.nearest(state_BD, k=5)[0][0]) == 0
    assert make_content().shape[1] == MODEL.content_dim
