import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import ACTION_NAMES, EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.errors import NothingToTest
from models.evaluation.leave_one_out import evaluate_leave_one_out, split_leave_one_out
from models.measures.ranking_metrics import ranking_metrics
from models.networks.config import ModelConfig
from models.ranking.config import StatisticsConfig
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook
from models.training.config import TrainConfig

CLICK, SKIP = ACTION_NAMES.index("click"), ACTION_NAMES.index("skip")
NUM_ITEMS = 40


def make_events(rows: list[tuple[str, int, int, int]]) -> EventBatch:
    return EventBatch(
        event_ids=[str(i) for i in range(len(rows))],
        user_ids=[user for user, *_ in rows],
        item_N=np.array([item for _, item, _, _ in rows], dtype=np.int64),
        action_N=np.array([action for _, _, _, action in rows], dtype=np.int64),
        time_ms_N=np.array([time for _, _, time, _ in rows], dtype=np.int64),
        value_N=np.zeros(len(rows)),
    )


def test_the_last_event_is_the_test_and_the_one_before_it_validation():
    events = make_events(
        [
            ("a", 1, 5, CLICK),
            ("b", 7, 0, CLICK),
            ("a", 2, 5, CLICK),
            ("c", 8, 1, CLICK),
            ("a", 3, 5, SKIP),
            ("a", 4, 3, CLICK),
            ("c", 9, 2, CLICK),
            ("a", 5, 5, CLICK),
        ]
    )
    split = split_leave_one_out(events)
    assert split.test.item_N.tolist() == [9, 5]
    assert split.validation.item_N.tolist() == [2]
    assert split.train.item_N.tolist() == [1, 7, 8, 4]
    assert split.before_test.item_N.tolist() == [1, 7, 2, 8, 4]


def make_walks() -> EventBatch:
    """Users walk the items in a circle; one of them has a single event, one has two."""
    rows = [(f"u{u}", (u + 3 * t) % NUM_ITEMS, 1_000 * t + u, CLICK) for t in range(7) for u in range(60)]
    rows += [("once", 1, 9_000, CLICK), ("twice", 4, 9_001, CLICK), ("twice", 7, 9_002, CLICK)]
    return make_events(rows)


@pytest.fixture(scope="module")
def catalogue() -> CatalogueIndex:
    content = functional.normalize(
        torch.from_numpy(np.random.default_rng(0).normal(size=(NUM_ITEMS, 8))).float()
    )
    config = CodebookConfig(num_levels=2, codebook_size=8, num_iterations=3)
    index = CatalogueIndex(fit_codebook(content, config))
    index.add_many([f"i{n}" for n in range(NUM_ITEMS)], content, np.zeros(NUM_ITEMS, dtype=np.int64))
    return index


def test_every_system_is_reported_and_finds_an_easy_pattern(catalogue):
    stages: list[str] = []
    report = evaluate_leave_one_out(
        catalogue,
        make_walks(),
        model=ModelConfig(
            content_dim=8, num_levels=2, codebook_size=8, d_model=32, num_heads=2, dropout=0.1, ranker_dim=16
        ),
        train=TrainConfig(align_epochs=1, max_epochs=12, batch_positions=96, learning_rate=5e-3),
        search=SearchConfig(beam=16, num_dense=16),
        statistics=StatisticsConfig(),
        progress=lambda stage, *_: stages.append(stage),
    )
    assert report.num_cases == 61
    for system in (report.dense, report.generator, report.recommend):
        assert set(system) == set(ranking_metrics(np.zeros(1, dtype=np.int64)))
        assert system["recall@5"] > 0.9
    assert len(report.hierarchical_recall) == 3
    assert report.hierarchical_recall[0] >= report.hierarchical_recall[2] > 0.9
    assert report.train_minutes > 0
    assert stages[0] == "learning the items"
    assert stages[-1] == "test"


def test_without_a_user_of_two_events_there_is_nothing_to_evaluate(catalogue):
    with pytest.raises(NothingToTest, match="two events"):
        evaluate_leave_one_out(
            catalogue,
            make_events([("a", 1, 0, CLICK), ("b", 2, 0, CLICK)]),
            model=ModelConfig(content_dim=8, num_levels=2, codebook_size=8),
            train=TrainConfig(),
            search=SearchConfig(),
            statistics=StatisticsConfig(),
        )
