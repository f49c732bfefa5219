"""Fitting the ranker offline: what the generator does not know, the live statistics tell."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline, recommend_many
from models.sequences.histories import Past, pad_pasts
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook
from models.training import ranker_fitting
from models.training.ranker_fitting import _num_validation, fit_ranker, is_plainly_worse

CLICK, NUM_ITEMS, LENGTH = 2, 60, 6
MODEL = ModelConfig(content_dim=8, num_levels=2, codebook_size=8, d_model=32, num_layers=1, ranker_dim=16)


def walks(num_users: int, step: int) -> EventBatch:
    """User n had items n, n + 1, ... and now has the one `step` steps on."""
    user = np.arange(num_users)
    return EventBatch(
        event_ids=[f"{n}-{step}" for n in user],
        user_ids=[f"u{n}" for n in user],
        item_N=((user * 7 + step) % NUM_ITEMS).astype(np.int64),
        action_N=np.full(num_users, CLICK),
        time_ms_N=np.full(num_users, 10**12 + step * 3_600_000),
        value_N=np.zeros(num_users),
    )


def joined(parts: list[EventBatch]) -> EventBatch:
    return EventBatch(
        event_ids=[one for part in parts for one in part.event_ids],
        user_ids=[one for part in parts for one in part.user_ids],
        item_N=np.concatenate([part.item_N for part in parts]),
        action_N=np.concatenate([part.action_N for part in parts]),
        time_ms_N=np.concatenate([part.time_ms_N for part in parts]),
        value_N=np.concatenate([part.value_N for part in parts]),
    )


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    content = functional.normalize(torch.randn(NUM_ITEMS, 8))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(NUM_ITEMS)], content, np.zeros(NUM_ITEMS, dtype=np.int64))
    statistics = LiveStatistics(StatisticsConfig())
    ranker = Ranker(MODEL, len(feature_names(statistics.config)))
    recommender = GenerativeRecommender(MODEL)
    return Pipeline.build(recommender, ranker, catalogue, statistics, SearchConfig(beam=4, num_dense=4))


def test_fitting_lifts_what_the_whole_path_answers(pipeline: Pipeline) -> None:
    known = joined([walks(150, step) for step in range(LENGTH)])
    held_out = walks(150, LENGTH)
    reports: list[str] = []
    figures = fit_ranker(
        pipeline, known, held_out, stream=known, seed=0, progress=lambda stage, *_: reports.append(stage)
    )
    assert pipeline.scorer.statistics.num_events == len(known)
    assert figures["candidate_recall"] > 0.9
    assert figures["ndcg@10"] > figures["blank_ndcg@10"] + 0.3
    assert set(reports) == {"collecting candidates", "learning to rank"}
    assert all(parameter.grad is None for parameter in pipeline.recommender.parameters())

    rows = np.arange(20, 20 + LENGTH)
    history = pad_pasts([Past(rows, np.full(LENGTH, CLICK), 10**12 + np.arange(LENGTH) * 3_600_000)], 50)
    (answer,) = recommend_many(
        pipeline, history, k=5, time_ms_B=[10**12 + LENGTH * 3_600_000], exclude=[rows]
    )
    assert 20 + LENGTH in answer.row_K


def test_what_fits_are_compared_on_is_collected_when_time_is_up(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranker_fitting, "NUM_COMPARED", 20)
    parts = [walks(200, step) for step in range(LENGTH)]
    figures = []
    used_up = iter([0.0])
    for time_share, num_examples in (
        (lambda: next(used_up, 1.0), None),  # after the first batch
        (lambda: 0.0, None),
        (lambda: 0.0, 100),
    ):
        figures.append(
            fit_ranker(
                pipeline,
                joined(parts[:-1]),
                parts[-1],
                stream=joined(parts[:-1]),
                seed=0,
                num_examples=num_examples,
                time_share=time_share,
            )
        )
    cut, whole, brief = figures
    assert cut["num_compared"] == whole["num_compared"] == brief["num_compared"] == 20
    # popularity knows no time limit: on the same events it is the same
    popularity = "compared_popularity_recall@10"
    assert cut[popularity] == whole[popularity] == brief[popularity]


def test_without_held_out_events_nothing_changes(pipeline: Pipeline) -> None:
    known = walks(20, 0)
    before = {name: tensor.clone() for name, tensor in pipeline.ranker.state_dict().items()}
    assert fit_ranker(pipeline, known, known, stream=known, seed=0) == {}  # everybody had the item already
    after = pipeline.ranker.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("num_examples", "expected"), [(0, 0), (10, 4), (240, 96), (600, 200), (6_000, 900)])
def test_of_few_examples_a_larger_share_is_kept_for_validation(num_examples: int, expected: int) -> None:
    assert _num_validation(num_examples) == expected


def test_a_round_is_plainly_worse_only_beyond_chance() -> None:
    best_N = np.tile([0, 3, -1, 12], 50)
    assert not is_plainly_worse(best_N, best_N)
    assert is_plainly_worse(np.tile([1, 5, -1, 12], 50), best_N)
    one_lost_N = best_N.copy()
    one_lost_N[0] = -1
    assert not is_plainly_worse(one_lost_N, best_N)
    assert not is_plainly_worse(best_N, one_lost_N)
