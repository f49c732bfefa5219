"""The generator: distinct available items from both sources, new ones at once, and the exact dense order."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import HistoryBatch
from models.candidates import Source
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.decoding.generator import Generator
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

MODEL = ModelConfig(content_dim=8, num_levels=2, codebook_size=8, d_model=32, num_layers=1)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    content = functional.normalize(torch.randn(40, 8))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(40)], content, np.zeros(40, dtype=np.int64))
    config = SearchConfig(beam=8, num_dense=8)
    return Generator(GenerativeRecommender(MODEL), catalogue, config, dtype=torch.float32)


@pytest.fixture
def history() -> HistoryBatch:
    return HistoryBatch.from_lists([[3, 9], []], [[2, 2], []], [[1_000, 2_000], []], max_history=8)


def test_both_sources_give_distinct_available_items(generator: Generator, history: HistoryBatch) -> None:
    generator.catalogue.set_available(5, False)
    exclude = [np.array([3, 9]), np.array([0, -1])]
    for b, found in enumerate(generator.generate_many(history, k=10, beam=10, exclude=exclude)):
        rows = found.row_M.tolist()
        assert len(set(rows)) == len(rows)
        assert not {5, *exclude[b].tolist()} & set(rows)
        of_beam = [bool(mask & Source.BEAM.bit) for mask in found.source_M]
        of_dense = [bool(mask & Source.DENSE.bit) for mask in found.source_M]
        assert sum(of_beam) == sum(of_dense) == 10
        assert np.isnan(found.beam_M).tolist() == [not one for one in of_beam]
        assert np.isnan(found.dense_M).tolist() == [not one for one in of_dense]


def test_dense_neighbours_are_the_exact_ones(generator: Generator, history: HistoryBatch) -> None:
    recommender, table = generator.recommender, generator.table
    with torch.no_grad():
        state_BD = recommender.last_state(history, table.item_ND)
        logits_BN = recommender.dense_logits(state_BD, table.vector_ND)
    for b, found in enumerate(generator.generate_many(history, k=6, beam=6, use_beam=False)):
        assert found.row_M.tolist() == logits_BN[b].topk(6).indices.tolist()
        np.testing.assert_allclose(found.dense_M, logits_BN[b].topk(6).values.numpy(), rtol=1e-5, atol=1e-6)


def test_more_than_there_is_gives_all_there_is(generator: Generator, history: HistoryBatch) -> None:
    for found in generator.generate_many(history, k=500, beam=500):
        assert sorted(found.row_M.tolist()) == list(range(40))
    for found in generator.generate_many(history, k=5, beam=5, exclude=[np.arange(40)] * 2):
        assert len(found) == 0


def test_no_source_no_candidates(generator: Generator, history: HistoryBatch) -> None:
    assert all(
        len(found) == 0
        for found in generator.generate_many(history, k=5, beam=5, use_beam=False, use_dense=False)
    )


def test_a_new_item_is_found_at_once_and_new_weights_after_refresh(
    generator: Generator, history: HistoryBatch
) -> None:
    generator.generate_many(history, k=3, beam=3)
    content_E = functional.normalize(torch.ones(8), dim=0)
    codes = generator.catalogue.assign(content_E)
    row = generator.insert("new", codes, content_E)
    assert all(row in found.row_M for found in generator.generate_many(history, k=41, beam=41))
    before = generator.table.vector_ND[row].clone()
    generator.insert("new", codes, -content_E)  # its description changed
    assert not torch.equal(generator.table.vector_ND[row], before)
    with torch.no_grad():
        generator.recommender.dense_item.bias.add_(1.0)
    stale = generator.table.vector_ND.clone()
    generator.refresh()
    assert not torch.equal(generator.table.vector_ND, stale)
    generator.insert("new", codes, content_E, available=False)
    assert not any(row in found.row_M for found in generator.generate_many(history, k=41, beam=41))


def test_an_empty_catalogue_answers_nothing(history: HistoryBatch) -> None:
    codebook = fit_codebook(torch.randn(20, 8), CodebookConfig(num_levels=2, codebook_size=8))
    generator = Generator(GenerativeRecommender(MODEL), CatalogueIndex(codebook), SearchConfig())
    strangers = HistoryBatch.from_lists([[]], [[]], [[]], max_history=8)
    (found,) = generator.generate_many(strangers, k=5, beam=5)
    assert len(found) == 0


def test_a_known_state_spares_the_trunk_and_changes_nothing(generator: Generator) -> None:
    whole = HistoryBatch.from_lists(
        [[3, 9, 4], [7, 1]], [[2, 2, 5], [2, 2]], [[1_000, 2_000, 9_000], [5, 6]], max_history=8
    )
    known = HistoryBatch.from_lists([[3], [7, 1]], [[2], [2, 2]], [[1_000], [5, 6]], max_history=8)
    new = HistoryBatch.from_lists([[9, 4], []], [[2, 5], []], [[2_000, 9_000], []], max_history=8)
    states = generator.extend(generator.prefill(known), new)
    assert states.length_B.tolist() == [3, 2]
    torch.testing.assert_close(states.state_BD, generator.prefill(whole).state_BD, atol=1e-4, rtol=1e-4)
    expected = generator.generate(whole, k=5, beam=8)
    found = generator.generate(whole, k=5, beam=8, state_BD=states.state_BD)
    for warm, cold in zip(found.candidates, expected.candidates, strict=True):
        assert warm.row_M.tolist() == cold.row_M.tolist()
        np.testing.assert_allclose(warm.beam_M, cold.beam_M, atol=1e-4)


def test_the_first_event_of_a_stranger_extends_the_empty_history(generator: Generator) -> None:
    nobody = HistoryBatch.from_lists([[]], [[]], [[]], max_history=8)
    first = HistoryBatch.from_lists([[4]], [[2]], [[77]], max_history=8)
    state = generator.extend(generator.prefill(nobody), first).state_BD
    torch.testing.assert_close(state, generator.prefill(first).state_BD, atol=1e-4, rtol=1e-4)


def test_new_weights_are_used_at_once(generator: Generator, history: HistoryBatch) -> None:
    before = generator.generate(history, k=5, beam=8).search.score_BK
    with torch.no_grad():
        for parameter in generator.recommender.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    generator.refresh()
    assert not torch.allclose(before, generator.generate(history, k=5, beam=8).search.score_BK)
