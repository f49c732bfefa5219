"""Who will like what: our ranker beside DIN target attention, on MovieLens in time order.

Protocol. Events in time order; a rating of 4 stars or more enters as the action `like`, any other as
`rating`. The first half trains the generator (whose item representations and dense logit both rankers read),
the next 30% are the rankers' examples, 10% choose the round, the last 10% are the test. Each event is asked
about right before it happened: will it be a like? Both rankers get the same batches, features, optimiser,
rounds and averaged weights; three seeds. AUC over all test events; NDCG@10 of each user's test events ordered
by the predicted probability, a like being relevant, over the users who have both.

Calibration: Platt scaling of the logit on the validation events; ECE of 15 equally filled bins on the test.

Shapes: B examples, D width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from calibration import expected_calibration_error, platt_scaling
from quality_data import Problem
from ranker_examples import Examples, follow
from torch import nn

from models.baselines.din import DinRanker
from models.batch import EventBatch
from models.decoding.config import SearchConfig
from models.device import autocast, compute_dtype
from models.networks.ranker import LIKE, LIKE_FROM_STARS, RATING, Ranker, ranking_loss
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline
from models.training.config import TrainConfig
from models.training.offline import train_recommender
from models.training.ranker_examples import BATCH_SIZE
from models.training.ranker_fitting import AVERAGE_DECAY, LEARNING_RATE, WEIGHT_DECAY

SHARES = (0.5, 0.8, 0.9)
NDCG_AT = 10
RANKERS: dict[str, type[nn.Module]] = {"headrace": Ranker, "din": DinRanker}
_CPU = torch.device("cpu")
Row = dict[str, float | int | str]
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained: epochs of the generator, rounds (passes) of each ranker, seeds."""

    generator_epochs: int = 4
    rounds: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)


def movielens_rows(problem: Problem, budget: Budget, tick: Tick) -> list[Row]:
    """One row for each ranker and seed."""
    events = _as_likes(problem.events)
    generator_end, train_end, validation_end = (int(share * len(events)) for share in SHARES)
    pipeline = _pipeline(problem, events.select(np.arange(generator_end)), budget)
    examples = follow(pipeline, events, generator_end, len(events))
    parts = [
        np.arange(train_end - generator_end),
        np.arange(train_end - generator_end, validation_end - generator_end),
        np.arange(validation_end - generator_end, len(examples)),
    ]
    rows = []
    for number, (name, seed) in enumerate((n, s) for n in RANKERS for s in budget.seeds):
        tick("like or not", number, len(RANKERS) * len(budget.seeds))
        torch.manual_seed(seed)
        blank = RANKERS[name](pipeline.ranker.config, pipeline.ranker.num_features)
        ranker = fit(blank, pipeline, examples, parts[0], parts[1], budget.rounds, seed)
        figures = _figures(ranker, pipeline, examples, parts[1], parts[2])
        rows.append({"system": name, "dataset": problem.name, "seed": seed, **figures})
    return rows


def _as_likes(events: EventBatch) -> EventBatch:
    """In time order, good ratings as likes: so a history says what was liked."""
    events = events.select(np.argsort(events.time_ms_N, kind="stable"))
    liked = (events.action_N == RATING) & (events.value_N >= LIKE_FROM_STARS)
    return replace(events, action_N=np.where(liked, LIKE, events.action_N))


def _pipeline(problem: Problem, events: EventBatch, budget: Budget) -> Pipeline:
    config = TrainConfig(max_epochs=budget.generator_epochs, align_epochs=0)
    nothing = events.select(np.arange(0))
    recommender = train_recommender(problem.catalogue, events, problem.model, config, validation=nothing)
    statistics = LiveStatistics(StatisticsConfig())
    ranker = Ranker(problem.model, len(feature_names(statistics.config)))
    return Pipeline.build(recommender, ranker, problem.catalogue, statistics, SearchConfig())


def fit(
    ranker: nn.Module,
    pipeline: Pipeline,
    examples: Examples,
    train_B: np.ndarray,
    validation_B: np.ndarray,
    rounds: int,
    seed: int,
) -> nn.Module:
    """The averaged weights of the round with the best AUC on validation."""
    random, dtype = np.random.default_rng(seed), compute_dtype(_CPU)
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    average, best, best_auc, num_steps = copy.deepcopy(ranker), copy.deepcopy(ranker), -1.0, 0
    item_ND = pipeline.engine.item_ND
    for _ in range(rounds):
        for batch, targets in examples.batches(pipeline, random.permutation(train_B), BATCH_SIZE):
            with autocast(_CPU, dtype):
                loss = ranking_loss(ranker(batch, item_ND), targets)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
            optimiser.step()
            num_steps += 1
            decay = min(AVERAGE_DECAY, num_steps / (num_steps + 10))
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), ranker.parameters(), strict=True):
                    mean.lerp_(weight, 1.0 - decay)
        reached = auc(like_logits(average, pipeline, examples, validation_B), examples.liked_B[validation_B])
        if reached > best_auc:
            best, best_auc = copy.deepcopy(average), reached
    return best


@torch.no_grad()
def like_logits(ranker: nn.Module, pipeline: Pipeline, examples: Examples, order: np.ndarray) -> np.ndarray:
    """The logit of a like for the examples in `order`, float32 [B]."""
    ranker.eval()
    found = [
        ranker(batch, pipeline.engine.item_ND).action_logit_BMA[:, 0, LIKE]
        for batch, _ in examples.batches(pipeline, order, 4 * BATCH_SIZE)
    ]
    return torch.cat(found).numpy()


def _figures(
    ranker: nn.Module, pipeline: Pipeline, examples: Examples, validation_B: np.ndarray, test_B: np.ndarray
) -> dict[str, float]:
    logit_B = like_logits(ranker, pipeline, examples, test_B)
    liked_B, user_B = examples.liked_B[test_B], examples.user_B[test_B]
    tuned = like_logits(ranker, pipeline, examples, validation_B)
    scale, shift = platt_scaling(tuned, examples.liked_B[validation_B])
    raw, calibrated = _sigmoid(logit_B), _sigmoid(scale * logit_B + shift)
    return {
        "auc": auc(logit_B, liked_B),
        "validation_auc": auc(tuned, examples.liked_B[validation_B]),
        f"ndcg@{NDCG_AT}": user_ndcg(logit_B, liked_B, user_B, NDCG_AT),
        "ece": expected_calibration_error(raw, liked_B),
        "ece_calibrated": expected_calibration_error(calibrated, liked_B),
        "num_test": len(test_B),
    }


def auc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Area under the ROC curve (ties count half); 0.5 where there is only one class."""
    num_positive = int(positive_N.sum())
    num_negative = len(positive_N) - num_positive
    if not num_positive or not num_negative:
        return 0.5
    _, inverse_N, count_U = np.unique(score_N, return_inverse=True, return_counts=True)
    mean_rank_U = np.cumsum(count_U) - (count_U - 1) / 2
    above = float(mean_rank_U[inverse_N][positive_N].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def user_ndcg(score_N: np.ndarray, positive_N: np.ndarray, user_N: np.ndarray, k: int) -> float:
    """Mean NDCG@k of the users who have both a positive and another event; 0 where there is none."""
    found = []
    for user in np.unique(user_N):
        mine = np.nonzero(user_N == user)[0]
        relevant = positive_N[mine]
        if not 0 < relevant.sum() < len(mine):
            continue
        discount = 1.0 / np.log2(np.arange(2, min(k, len(mine)) + 2))
        ordered = relevant[np.argsort(-score_N[mine], kind="stable")][:k]
        ideal = discount[: int(relevant.sum())].sum()
        found.append(float((ordered * discount).sum() / ideal))
    return float(np.mean(found)) if found else 0.0


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit.astype(np.float64)))
