"""The union of both searches: distinct available items, each with what brought it."""

import numpy as np
import pytest
import torch

from models.batch import HistoryBatch
from models.candidates import Source
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.generation import generate
from models.networks.recommender import GenerativeRecommender
from tests.factories import MODEL, make_catalogue


@pytest.fixture
def engine() -> CpuEngine:
    torch.manual_seed(0)
    return CpuEngine(GenerativeRecommender(MODEL), make_catalogue(), dtype=torch.float32)


@pytest.fixture
def history() -> HistoryBatch:
    return HistoryBatch.from_lists([[3, 9], []], [[2, 2], []], [[1_000, 2_000], []], max_history=8)


def test_both_sources_give_distinct_available_items(engine: CpuEngine, history: HistoryBatch) -> None:
    engine.catalogue.set_available(5, False)
    exclude = [np.array([3, 9]), np.array([0, -1])]
    for b, found in enumerate(generate(engine, history, k=10, beam=10, exclude=exclude).candidates):
        rows = found.row_M.tolist()
        assert len(set(rows)) == len(rows)
        assert not {5, *exclude[b].tolist()} & set(rows)
        of_beam = [bool(mask & Source.BEAM.bit) for mask in found.source_M]
        of_dense = [bool(mask & Source.DENSE.bit) for mask in found.source_M]
        assert sum(of_beam) == sum(of_dense) == 10
        assert np.isnan(found.beam_M).tolist() == [not one for one in of_beam]
        assert np.isnan(found.dense_M).tolist() == [not one for one in of_dense]


def test_no_source_no_candidates(engine: CpuEngine, history: HistoryBatch) -> None:
    found = generate(engine, history, k=5, beam=5, use_beam=False, use_dense=False)
    assert [len(one) for one in found.candidates] == [0, 0]
    assert found.search is None


def test_an_empty_catalogue_answers_nothing() -> None:
    engine = CpuEngine(GenerativeRecommender(MODEL), CatalogueIndex(make_catalogue().codebook))
    strangers = HistoryBatch.from_lists([[]], [[]], [[]], max_history=8)
    (found,) = generate(engine, strangers, k=5, beam=5).candidates
    assert len(found) == 0


def test_a_known_state_spares_the_trunk_and_changes_nothing(engine: CpuEngine, history: HistoryBatch) -> None:
    expected = generate(engine, history, k=5, beam=8)
    found = generate(engine, history, k=5, beam=8, state_BD=engine.states(history).state_BD)
    for warm, cold in zip(found.candidates, expected.candidates, strict=True):
        assert warm.row_M.tolist() == cold.row_M.tolist()
        np.testing.assert_allclose(warm.beam_M, cold.beam_M, atol=1e-4)
