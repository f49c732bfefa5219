import numpy as np
import pytest
import torch

from models.batch import ACTION_NAMES, EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.dense_ranks import dense_ranks
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from models.sequences.holdout import HoldoutCases
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook


def make_events(rows: list[tuple[str, int, int]]) -> EventBatch:
    return EventBatch(
        event_ids=[str(i) for i in range(len(rows))],
        user_ids=[user for user, _, _ in rows],
        item_N=np.array([item for _, item, _ in rows], dtype=np.int64),
        action_N=np.full(len(rows), ACTION_NAMES.index("click")),
        time_ms_N=np.array([time for _, _, time in rows], dtype=np.int64),
        value_N=np.zeros(len(rows)),
    )


KNOWN = make_events([("a", 1, 0), ("a", 2, 1), ("b", 3, 0), ("a", 4, 2)])
HELD_OUT = make_events([("a", 5, 9), ("new", 6, 9), ("b", 3, 9), ("b", 7, 9)])


@pytest.fixture
def cases() -> HoldoutCases:
    return HoldoutCases.from_events(KNOWN, HELD_OUT)


def test_cases_know_the_whole_history_and_read_the_newest(cases):
    assert [rows.tolist() for rows in cases.known_rows()] == [[1, 2, 4], [], [3], [3, 3]]
    assert cases.histories(2).item_BT.tolist() == [[2, 4], [-1, -1], [3, -1], [3, 3]]
    assert cases.user_ids == ["a", "", "b", "b"]


def test_cases_know_what_was_held_out_before_them_and_nothing_later():
    held_out = make_events([("b", 5, 7), ("a", 6, 9), ("b", 7, 6), ("new", 8, 3), ("new", 9, 3)])
    held_out.action_N[1] = ACTION_NAMES.index("skip")
    cases = HoldoutCases.from_events(KNOWN, held_out)
    assert [rows.tolist() for rows in cases.known_rows()] == [[3, 7], [1, 2, 4], [3], [], [8]]
    some = cases.select(np.array([3, 0, 0, 4]))
    distinct, of_case = some.of_distinct_histories()
    assert [rows.tolist() for rows in distinct.known_rows()] == [[], [3, 7], [8]]
    assert of_case.tolist() == [0, 1, 1, 2]


def test_batches_cover_every_case_once(cases):
    chosen = np.concatenate([index for index, _ in cases.batches(3)])
    assert sorted(chosen.tolist()) == [0, 1, 2, 3]


def test_dense_ranks_equal_an_obvious_ranking(cases):
    torch.manual_seed(0)
    config = ModelConfig(content_dim=6, codebook_size=8, d_model=16, num_heads=2)
    recommender = GenerativeRecommender(config).eval()
    catalogue = CatalogueIndex(fit_codebook(torch.randn(20, 6), CodebookConfig(codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(10)], torch.randn(10, 6), np.zeros(10, dtype=np.int64))
    catalogue.set_available(8, False)
    engine = CpuEngine(recommender, catalogue, dtype=torch.float32)
    logits = engine.dense_logits(engine.states(cases.histories(config.max_history)).state_BD)
    ranks = dense_ranks(engine, cases, batch_size=3)
    for b, (known, target) in enumerate(zip(cases.known_rows(), cases.target_B, strict=True)):
        order = [i for i in logits[b].argsort(descending=True).tolist() if i != 8 and i not in known]
        assert ranks[b] == (order.index(target) if target in order else -1)
    assert ranks[2] == -1
