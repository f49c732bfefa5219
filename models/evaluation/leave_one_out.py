"""The leave-one-out protocol: train, then rank each user's last item, once, by every system.

Owns the split, the order of the work and the report. Ranking the whole catalogue is
`models/decoding/dense_ranks.py`'s, training `models/training/offline.py`'s and
`models/training/ranker_fitting.py`'s; the whole path is answered by the functions that serve
(`models/ranking/pipeline.py`).

Shapes: B cases, C codes of an item, K list positions.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from models.arrays import Float64Array, Int64Array
from models.batch import EventBatch, HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.beam_search import SearchResult
from models.decoding.config import SearchConfig
from models.decoding.dense_ranks import dense_ranks
from models.decoding.generation import Generation, generate
from models.decoding.popularity_ranks import popularity_ranks
from models.errors import NothingToTest
from models.measures.ranking_metrics import Ranks, hierarchical_recall, ranking_metrics, ranks_in_lists
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.progress import Progress, quietly
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Answer, Pipeline, take_best, with_live
from models.ranking.scorer import Scorer
from models.ranking.statistics_follower import StatisticsFollower
from models.sequences.holdout import HoldoutCases
from models.training.config import TrainConfig
from models.training.offline import train_recommender
from models.training.ranker_examples import windowed_popularity_ranks
from models.training.ranker_fitting import fit_ranker

NUM_ANSWERS = 10
BATCH_CASES = 64


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutSplit:
    """Parts of one stream, each in stream order; `before_test` is `train` and `validation` together."""

    train: EventBatch
    validation: EventBatch
    before_test: EventBatch
    test: EventBatch


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Test figures by system ("recall@5", "recall@10", "ndcg@5", "ndcg@10") and what they took.

    `generator` is the beam search alone, `dense` the dense head alone over the whole catalogue, `recommend`
    the whole path. `popularity` ranks by all events before the test, `popularity_now` by the newest
    `POPULARITY_WINDOW` wishes before the moment of each test event, which `recommend` knows as well.
    `hierarchical_recall[l - 1]` is the share of cases whose right first l codes were among the beams.
    `ranker` holds what `fit_ranker` reached on the validation items it kept back.
    """

    recommend: dict[str, float]
    generator: dict[str, float]
    dense: dict[str, float]
    popularity: dict[str, float]
    popularity_now: dict[str, float]
    hierarchical_recall: list[float]
    ranker: dict[str, float]
    num_cases: int
    train_minutes: float
    test_minutes: float


@dataclass(frozen=True, kw_only=True)
class SystemRanks:
    """0-based ranks of the right items by system, -1 where missed; -1 stands for any place after the tenth
    in `recommend` and `generator`, which answer with `NUM_ANSWERS` items."""

    recommend: Ranks
    generator: Ranks
    dense: Ranks
    hierarchical_recall: list[float]


def split_leave_one_out(events: EventBatch) -> LeaveOneOutSplit:
    """Each user's last event is the test, the one before it validation, the rest training.

    The order within a user is time, then stream order. What is no wish for an item is left out. A user of two
    events has no validation event, a user of one only that to train on.
    """
    events = events.select(events.is_wish_N)
    _, user_N = np.unique(np.asarray(events.user_ids, dtype=np.str_), return_inverse=True)
    order_N = np.lexsort((events.time_ms_N, user_N))
    num_U = np.bincount(user_N)
    place_N = np.empty(len(events), dtype=np.int64)
    place_N[order_N] = np.arange(len(events)) - np.repeat(np.cumsum(num_U) - num_U, num_U)
    from_end_N = num_U[user_N] - 1 - place_N
    is_test = (from_end_N == 0) & (place_N >= 1)
    is_validation = (from_end_N == 1) & (place_N >= 1)
    return LeaveOneOutSplit(
        train=events.select(~is_test & ~is_validation),
        validation=events.select(is_validation),
        before_test=events.select(~is_test),
        test=events.select(is_test),
    )


def evaluate_leave_one_out(
    catalogue: CatalogueIndex,
    events: EventBatch,
    *,
    model: ModelConfig,
    train: TrainConfig,
    search: SearchConfig,
    statistics: StatisticsConfig,
    progress: Progress = quietly,
) -> EvaluationReport:
    """Trains everything and reports the test figures of the three systems, in one go.

    The protocol is the published one (S3-Rec, TIGER): train on all but each user's last two events, choose
    by the event before the last, test on the last with the validation event in the history. The right
    item competes with ALL available catalogue items except those that the user already had in the history.

    - The recommender learns from training events, its epoch is chosen by the validation events.
    - The ranker is fitted to the validation events of most users and chosen by those of the others; the
      recommender never trained on either.
    - The live statistics of an answer hold what came strictly before the event it is to predict: training
      events while the ranker is fitted, validation events as well in the test. An answer thus uses the
      moment of the request, as serving does, which the published sequence models do not.

    `events` are in stream order, on rows of `catalogue`. Raises NothingToTest if no user has two events, and
    NonFiniteLoss.
    """
    begin_s = time.perf_counter()
    split = split_leave_one_out(events)
    if not len(split.test):
        raise NothingToTest("leave-one-out needs a user with at least two events that are wishes")
    pipeline, ranker_figures = fit_pipeline(
        catalogue, split, model=model, train=train, search=search, statistics=statistics, progress=progress
    )
    trained_s = time.perf_counter()
    cases = HoldoutCases.from_events(split.before_test, split.test)
    ranks = rank_by_every_system(pipeline, cases, split.before_test, progress)
    return EvaluationReport(
        recommend=ranking_metrics(ranks.recommend),
        generator=ranking_metrics(ranks.generator),
        dense=ranking_metrics(ranks.dense),
        popularity=ranking_metrics(popularity_ranks(cases, split.before_test, len(catalogue))),
        popularity_now=ranking_metrics(_popularity_now(cases, split.before_test)),
        hierarchical_recall=ranks.hierarchical_recall,
        ranker=ranker_figures,
        num_cases=len(cases),
        train_minutes=(trained_s - begin_s) / 60,
        test_minutes=(time.perf_counter() - trained_s) / 60,
    )


def fit_pipeline(
    catalogue: CatalogueIndex,
    split: LeaveOneOutSplit,
    *,
    model: ModelConfig,
    train: TrainConfig,
    search: SearchConfig,
    statistics: StatisticsConfig,
    progress: Progress = quietly,
) -> tuple[Pipeline, dict[str, float]]:
    """The whole path, trained on `train`, chosen by `validation`, and the ranker's figures there."""
    recommender = train_recommender(
        catalogue, split.train, model, train, validation=split.validation, progress=progress
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        ranker = Ranker(model, len(feature_names(statistics)))
    pipeline = Pipeline.build(recommender, ranker, catalogue, LiveStatistics(statistics), search)
    figures = fit_ranker(
        pipeline,
        split.train,
        split.validation,
        stream=_in_time_order(split.train),
        seed=train.seed,
        progress=progress,
    )
    return pipeline, figures


def rank_by_every_system(
    pipeline: Pipeline, cases: HoldoutCases, known: EventBatch, progress: Progress = quietly
) -> SystemRanks:
    """Ranks each case's target by the dense head, the beam search and the whole path.

    The statistics begin anew and follow `known`, the events that the cases' histories were made of.
    """
    engine, search, catalogue = pipeline.engine, pipeline.search, pipeline.engine.catalogue
    statistics = LiveStatistics(pipeline.scorer.statistics.config)
    follower = StatisticsFollower(statistics, catalogue, _in_time_order(known))
    scorer = Scorer(engine, statistics)
    beamed_BK = np.full((len(cases), NUM_ANSWERS), -1, dtype=np.int64)
    answered_BK = np.full((len(cases), NUM_ANSWERS), -1, dtype=np.int64)
    found_C = np.zeros(catalogue.codes_NC.shape[1])
    order_B = np.argsort(cases.time_ms_B, kind="stable")
    for begin in range(0, len(order_B), BATCH_CASES):
        chosen = order_B[begin : begin + BATCH_CASES]
        part = cases.select(chosen)
        history = part.histories(engine.config.max_history)
        found = generate(
            engine,
            history,
            k=max(NUM_ANSWERS, search.num_dense),
            beam=search.beam,
            exclude=part.known_rows(),
        )
        if found.search is not None:
            row_BK = found.search.row_BK.numpy()[:, :NUM_ANSWERS]
            beamed_BK[chosen, : row_BK.shape[1]] = row_BK
            found_C += _prefixes_found(found.search, catalogue.codes_NC.numpy()[part.target_B])
        for case, answer in zip(chosen, _answer(scorer, follower, part, history, found), strict=True):
            answered_BK[case, : len(answer.row_K)] = answer.row_K
        progress("test", begin + len(chosen), len(cases))
    return SystemRanks(
        recommend=ranks_in_lists(answered_BK, cases.target_B),
        generator=ranks_in_lists(beamed_BK, cases.target_B),
        dense=dense_ranks(engine, cases),
        hierarchical_recall=(found_C / max(1, len(cases))).tolist(),
    )


def _popularity_now(cases: HoldoutCases, known: EventBatch) -> Ranks:
    in_time = cases.select(np.argsort(cases.time_ms_B, kind="stable"))
    return windowed_popularity_ranks(in_time, known.select(np.arange(0)), _in_time_order(known))


def _answer(
    scorer: Scorer,
    follower: StatisticsFollower,
    cases: HoldoutCases,
    history: HistoryBatch,
    found: Generation,
) -> list[Answer]:
    """What serving would answer to each case at its own moment; cases in time order."""
    candidates, features = [], []
    for b, exclude in enumerate(cases.known_rows()):
        time_ms = int(cases.time_ms_B[b])
        follower.reach(time_ms)
        united = with_live(scorer, found.candidates[b], history, b, time_ms, exclude)
        candidates.append(united)
        features.append(scorer.features(history, b, united.row_M, time_ms))
    results = scorer.score_many(history, candidates, features, found.state_BD)
    return [
        take_best(scorer.catalogue, united, result, NUM_ANSWERS)
        for united, result in zip(candidates, results, strict=True)
    ]


def _prefixes_found(search: SearchResult, codes_BC: Int64Array) -> Float64Array:
    """For how many cases the right first l codes were among the beams, for l = 1 to C."""
    recall_C = [hierarchical_recall(prefix_BKl.numpy(), codes_BC) for prefix_BKl in search.prefixes]
    return np.asarray(recall_C) * len(codes_BC)


def _in_time_order(events: EventBatch) -> EventBatch:
    return events.select(np.argsort(events.time_ms_N, kind="stable"))
