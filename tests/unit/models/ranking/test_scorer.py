"""The ranker: masked candidates, a sensible blank order, its losses, and one path for all callers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import ACTION_NAMES, HistoryBatch
from models.candidates import Candidates, Source, proposed_by
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.decoding.cpu_engine import CpuEngine
from models.networks.config import ModelConfig
from models.networks.ranker import LIKE, RATING, Ranker, RankingTargets, action_labels, ranking_loss
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline
from models.ranking.scorer import Scorer, order_by_score
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

NOW = 10**12
CLICK = ACTION_NAMES.index("click")
MODEL = ModelConfig(
    content_dim=8, num_levels=2, codebook_size=8, d_model=32, num_heads=4, num_layers=1, ranker_dim=16
)


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    content = functional.normalize(torch.randn(40, 8))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(40)], content, np.full(40, NOW - 10**9))
    statistics = LiveStatistics(StatisticsConfig())
    random = np.random.default_rng(0)
    for n in range(200):
        statistics.update(f"u{random.integers(9)}", f"i{random.integers(30)}", CLICK, NOW - 10**6 + n)
    ranker = Ranker(MODEL, len(feature_names(statistics.config)))
    return Pipeline.build(GenerativeRecommender(MODEL), ranker, catalogue, statistics, SearchConfig())


@pytest.fixture
def scorer(pipeline: Pipeline) -> Scorer:
    return pipeline.scorer


@pytest.fixture
def history() -> HistoryBatch:
    return HistoryBatch.from_lists(
        [[3, 9, 4], [], [7]],
        [[2, 2, 4], [], [2]],
        [[NOW - 9000, NOW - 5000, NOW - 10], [], [NOW]],
        max_history=8,
    )


def some_candidates(size: int, seed: int = 0) -> Candidates:
    random = np.random.default_rng(seed)
    beam = random.normal(-6, 2, size).astype(np.float32)
    beam[::2] = np.nan
    return Candidates(
        row_M=random.permutation(40)[:size].astype(np.int64),
        source_M=np.where(np.isnan(beam), Source.DENSE.bit, Source.BEAM.bit | Source.DENSE.bit),
        beam_M=beam,
        dense_M=np.full(size, np.nan, dtype=np.float32),
    )


def shake(ranker: Ranker) -> None:
    """Gives the last layer weights, so that everything before it matters."""
    with torch.no_grad():
        ranker.output.weight.normal_(generator=torch.Generator().manual_seed(1))


def one_of(candidates: Candidates, m: int) -> Candidates:
    return Candidates(
        row_M=candidates.row_M[m : m + 1],
        source_M=candidates.source_M[m : m + 1],
        beam_M=candidates.beam_M[m : m + 1],
        dense_M=candidates.dense_M[m : m + 1],
    )


def test_one_pass_equals_a_pass_for_each_candidate(pipeline: Pipeline, history: HistoryBatch) -> None:
    scorer = pipeline.scorer
    shake(pipeline.ranker)
    candidates = [some_candidates(size, seed) for seed, size in enumerate((20, 7, 12))]
    together = scorer.rank_many(history, candidates, [NOW] * 3)
    for b, length in enumerate(history.length_B.tolist()):
        alone = HistoryBatch(
            item_BT=history.item_BT[b : b + 1, : max(1, length)],
            action_BT=history.action_BT[b : b + 1, : max(1, length)],
            time_ms_BT=history.time_ms_BT[b : b + 1, : max(1, length)],
            length_B=history.length_B[b : b + 1],
        )
        for m in range(len(candidates[b])):
            single = scorer.rank(alone, one_of(candidates[b], m), NOW)
            assert single.score_M[0] == pytest.approx(together[b].score_M[m], abs=1e-5)
            np.testing.assert_allclose(
                single.action_probability_MA[0], together[b].action_probability_MA[m], atol=1e-5
            )


def test_blank_ranker_orders_by_dense_logit(scorer: Scorer, history: HistoryBatch) -> None:
    candidates = [proposed_by(Source.TRENDING, np.arange(40))] * 3
    dense_BN = scorer.engine.dense_logits(scorer.engine.states(history).state_BD)
    for b, result in enumerate(scorer.rank_many(history, candidates, [NOW] * 3)):
        np.testing.assert_allclose(result.score_M, dense_BN[b].numpy(), atol=1e-4)


def test_blank_ranker_prefers_what_the_beam_proposed(scorer: Scorer, history: HistoryBatch) -> None:
    plain = proposed_by(Source.DENSE, np.array([5]))
    from_beam = Candidates(
        row_M=plain.row_M, source_M=plain.source_M, beam_M=np.float32([-4.0]), dense_M=plain.dense_M
    )
    scores = [scorer.rank_many(history, [one] * 3, [NOW] * 3)[0].score_M[0] for one in (plain, from_beam)]
    assert scores[1] > scores[0]


def test_ranking_moves_the_ranker_and_not_the_generator(pipeline: Pipeline, history: HistoryBatch) -> None:
    scorer, ranker = pipeline.scorer, pipeline.ranker
    candidates = [some_candidates(12, seed) for seed in range(3)]
    feature_BMF = [scorer.features(history, b, one.row_M, NOW) for b, one in enumerate(candidates)]
    batch = scorer.batch(history, candidates, feature_BMF)
    targets = RankingTargets(
        target_B=torch.tensor([3, 0, -1]),
        chosen_B=torch.tensor([True, False, True]),
        action_BA=action_labels(torch.tensor([CLICK, RATING, CLICK]), torch.tensor([0.0, 5.0, 0.0])),
    )
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = ranking_loss(ranker(batch, scorer.engine.item_ND), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is None for parameter in pipeline.recommender.parameters())


def test_nothing_to_learn_is_no_loss(pipeline: Pipeline, history: HistoryBatch) -> None:
    scorer = pipeline.scorer
    candidates = [some_candidates(4)] * 3
    feature_BMF = [scorer.features(history, b, one.row_M, NOW) for b, one in enumerate(candidates)]
    targets = RankingTargets(
        target_B=torch.full((3,), -1),
        chosen_B=torch.ones(3, dtype=torch.bool),
        action_BA=torch.zeros(3, len(ACTION_NAMES)),
    )
    output = pipeline.ranker(scorer.batch(history, candidates, feature_BMF), scorer.engine.item_ND)
    assert ranking_loss(output, targets).item() == 0.0


def test_a_good_rating_is_a_like() -> None:
    labels = action_labels(torch.tensor([RATING, RATING, CLICK]), torch.tensor([4.0, 3.5, 9.0]))
    assert labels[:, LIKE].tolist() == [1.0, 0.0, 0.0]
    assert labels[:, RATING].tolist() == [1.0, 1.0, 0.0]


def test_features_are_the_same_for_serving_and_learning() -> None:
    """A consumer that went event by event and one restored from a snapshot see the same numbers."""
    content = functional.normalize(torch.randn(25, 8, generator=torch.Generator().manual_seed(3)))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(20)], content[:20], np.zeros(20, dtype=np.int64))
    served, learned = LiveStatistics(StatisticsConfig()), LiveStatistics(StatisticsConfig())
    random = np.random.default_rng(5)
    config = ModelConfig(content_dim=8, num_levels=2, codebook_size=8, d_model=32, ranker_dim=16)
    ranker = Ranker(config, len(feature_names(served.config)))
    engine = CpuEngine(GenerativeRecommender(config), catalogue, ranker)
    serving, learning = (Scorer(engine, one) for one in (served, learned))
    histories: dict[str, list[int]] = {}
    for n in range(120):
        user, row = f"u{random.integers(6)}", int(random.integers(min(len(catalogue), 25)))
        rows = histories.setdefault(user, [])
        history = HistoryBatch.from_lists([rows], [[CLICK] * len(rows)], [[NOW] * len(rows)], max_history=9)
        nothing = proposed_by(Source.DENSE, np.arange(3))
        answers = []
        for scorer in (serving, learning):
            candidates = scorer.live_sources.add(nothing, np.array(rows, np.int64), NOW + n)
            answers.append((candidates, scorer.features(history, 0, candidates.row_M, NOW + n)))
        assert answers[0][0].row_M.tolist() == answers[1][0].row_M.tolist()
        np.testing.assert_array_equal(answers[0][1], answers[1][1])
        for statistics in (served, learned):
            statistics.update(user, catalogue.item_ids[row], CLICK, NOW + n)
        rows.append(row)
        if n == 60:  # a snapshot is loaded, and new items arrive
            learned = LiveStatistics.from_state(learned.config, *learned.state())
            learning = Scorer(engine, learned)
            for m in range(20, 25):
                catalogue.insert(f"i{m}", catalogue.assign(content[m]), content[m], announced_ms=NOW)


def test_order_breaks_ties_by_item_id() -> None:
    assert order_by_score(np.float32([1, 2, 1]), np.array([1, 2, 0]), ["a", "b", "c"]).tolist() == [1, 2, 0]
