"""Fitting the ranker offline, on held-out events that its generator never learned from.

Owns the examples, the optimiser and when to stop. Each example sees the live statistics as they stood right
before its event, as a request at that moment would have.

Only what the sources proposed is learned from. With the item added where they had missed it, the network
learned to tell the added one (a dense neighbour with the lowest logit of all), which no request has: on
1,500 validation cases of Beauty NDCG@10 moved between .043 and .073 from epoch to epoch, .070 being that of
the blank ranker; without those examples it rose to .084 and stayed.

Shapes: B requests, M candidates, F live features.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from models.arrays import Int64Array
from models.batch import EventBatch
from models.device import autocast, compute_dtype
from models.measures.ranking_metrics import Ranks, gains, ndcg_at, ranking_metrics, recall_at
from models.networks.ranker import Ranker, ranking_loss
from models.progress import Progress, quietly
from models.ranking.pipeline import Pipeline
from models.ranking.statistics_follower import StatisticsFollower
from models.sequences.holdout import HoldoutCases
from models.training.ranker_examples import (
    BATCH_SIZE,
    Example,
    collect_examples,
    example_batch,
    windowed_popularity_ranks,
)

MAX_EXAMPLES = 30_000
VALIDATION_SHARE = 0.15
# A round is a pass over the examples, or more where they are few.
MIN_ROUND_STEPS = 40
# With 36 examples of 240 the round was chosen by chance, and some users' answers were poor.
MIN_VALIDATION = 200
MAX_ROUNDS = 20
PATIENCE_ROUNDS = 3
# Of few examples each round learns more by heart: from the second worse round on, one that is worse than the
# one before it and than the best by so many standard errors is the last.
PLAINLY = 2.5
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
AVERAGE_DECAY = 0.98
_MAX_GRAD_NORM = 1.0
_RANKING = "learning to rank"
# So many a brief fit has in any case: a blank ranker does not use the live statistics, which know most then.
MIN_BRIEF_ROUNDS = 1
# A brief fit is compared with the whole one on so many events.
NUM_COMPARED = 500
# Under a time limit, the collecting of candidates ends at this share of it.
_COLLECT_UNTIL = 0.7


def fit_ranker(
    pipeline: Pipeline,
    known: EventBatch,
    held_out: EventBatch,
    *,
    stream: EventBatch,
    seed: int,
    num_examples: int | None = None,
    progress: Progress = quietly,
    time_share: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Fits `pipeline`'s ranker to predict `held_out` from `known`, in place, and returns what it reached.

    `stream` are the events, in stream order, that `pipeline`'s statistics do not hold yet: the statistics
    take them in up to the moment right before each held-out event. On Beauty's leave-one-out validation items
    this gave Recall@10 .111; statistics of the whole of `known` for every example, later events included,
    gave .098.

    `held_out` must hold wishes only; those for items that the user already had before are left out, and at
    most `MAX_EXAMPLES` are drawn. `VALIDATION_SHARE` of the examples, more of few, is for validation; the
    averaged weights of the round with the best NDCG@10 there stay. The metrics are that round's recall and
    NDCG, `blank_ndcg@10` before any fitting, `candidate_recall`: how often the sources together proposed the
    right item, and `popularity_recall@10`: that of the newest events' most frequent items on the same events;
    none where there are too few examples to validate. `time_share()` says how much of the time is used up, 0
    to 1, where there is a limit: fewer examples are collected then, and no round begins at 1.

    With `num_examples` a brief fit, of so many examples whatever the time. It is validated on the first
    `NUM_COMPARED` of those events that the whole one is validated on; `compared_recall@10` and
    `compared_popularity_recall@10` of either are on those `num_compared`.
    """
    time_share = time_share or (lambda: 0.0)
    random = np.random.default_rng(seed)
    cases = HoldoutCases.from_events(known, held_out)
    pairs = zip(cases.target_B.tolist(), cases.known_rows(), strict=True)
    new = random.permutation([b for b, (row, had_X) in enumerate(pairs) if row not in had_X]).astype(np.int64)
    num_validation = _num_validation(len(new[:MAX_EXAMPLES]))
    drawn = new[: num_examples or MAX_EXAMPLES]
    in_time = np.argsort(cases.time_ms_B[drawn], kind="stable")
    chosen = drawn[in_time]
    follower = StatisticsFollower(pipeline.scorer.statistics, pipeline.scorer.catalogue, stream)

    def collect(place_X: Int64Array, say: Progress, is_over: Callable[[], bool]) -> list[Example | None]:
        part = chosen[place_X]
        return collect_examples(
            pipeline, cases.select(part), held_out.select(part), follower, say, is_over=is_over
        )

    place_X = np.arange(len(chosen))
    asked = collect(place_X, progress, lambda: num_examples is None and time_share() >= _COLLECT_UNTIL)
    # what fits are compared on is collected in any case
    late_X = place_X[len(asked) :][in_time[len(asked) :] < NUM_COMPARED]
    place_X = np.concatenate([place_X[: len(asked)], late_X])
    asked += collect(late_X, quietly, lambda: False)
    popular_N = windowed_popularity_ranks(cases.select(chosen), known, stream)[place_X]
    as_drawn = np.argsort(in_time[place_X])
    if num_examples is not None:
        num_validation = min(num_validation, NUM_COMPARED, len(asked) // 2)
    elif len(asked) < len(chosen):
        num_validation = max(_num_validation(len(asked)), min(NUM_COMPARED, len(asked) // 2))
    return _fit(
        pipeline,
        [asked[i] for i in as_drawn],
        num_validation,
        popular_N[as_drawn],
        random=random,
        progress=progress,
        min_rounds=0 if num_examples is None else MIN_BRIEF_ROUNDS,
        is_over=lambda: time_share() >= 1.0,
    )


def _num_validation(num_examples: int) -> int:
    """`VALIDATION_SHARE` of them, but no less than tell one round from another, or two fifths of few."""
    return max(int(num_examples * VALIDATION_SHARE), min(MIN_VALIDATION, int(num_examples * 0.4)))


def fit_examples(
    pipeline: Pipeline,
    asked: list[Example | None],
    *,
    random: np.random.Generator,
    validation_share: float = VALIDATION_SHARE,
    progress: Progress = quietly,
) -> dict[str, float]:
    """`fit_ranker` with examples that were collected before, None where nobody proposed the item."""
    shuffled = [asked[i] for i in random.permutation(len(asked))]
    num_validation = int(len(asked) * validation_share)
    return _fit(pipeline, shuffled, num_validation, None, random=random, progress=progress)


def _fit(
    pipeline: Pipeline,
    asked: list[Example | None],
    num_validation: int,
    popular_N: Ranks | None,
    *,
    random: np.random.Generator,
    progress: Progress,
    min_rounds: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The rounds, on all but the first `num_validation` of the examples; `popular_N`: popularity's ranks."""
    if not num_validation:
        return {}
    validation = asked[:num_validation]
    training = [example for example in asked[num_validation:] if example is not None]
    ranker = pipeline.ranker
    best_N = _validate(pipeline, ranker, validation)
    figures = {
        "blank_ndcg@10": ndcg_at(best_N, 10),
        "candidate_recall": float(np.mean([example is not None for example in validation])),
    }
    popularity = (
        {} if popular_N is None else {"popularity_recall@10": recall_at(popular_N[:num_validation], 10)}
    )
    best_weights, num_worse, before, num_rounds = copy.deepcopy(ranker.state_dict()), 0, 1.0, 0
    trained = AveragedTraining(pipeline, ranker, training, random)
    for round_ in range(MAX_ROUNDS if training else 0):
        if round_ >= min_rounds and is_over():
            break
        trained.one_round()
        rank_N = _validate(pipeline, trained.average, validation)
        num_rounds = round_ + 1
        progress(_RANKING, num_rounds, MAX_ROUNDS, ranking_metrics(rank_N) | popularity)
        if ndcg_at(rank_N, 10) > ndcg_at(best_N, 10):
            best_N, best_weights, num_worse = rank_N, copy.deepcopy(trained.average.state_dict()), 0
            continue
        num_worse += 1
        goes_wrong = num_worse > 1 and ndcg_at(rank_N, 10) < before and is_plainly_worse(rank_N, best_N)
        if goes_wrong or num_worse > PATIENCE_ROUNDS:
            break
        before = ndcg_at(rank_N, 10)
    if num_rounds:
        progress(_RANKING, num_rounds, num_rounds, ranking_metrics(best_N) | popularity)
    ranker.load_state_dict(best_weights)
    pipeline.weights_changed()
    if popular_N is not None:
        figures |= _beside_popularity(best_N, popular_N[:num_validation])
    return {**ranking_metrics(best_N), **figures}


def is_plainly_worse(rank_N: Ranks, best_N: Ranks) -> bool:
    """Whether NDCG@10 of the same cases, in pairs, is lower by more than `PLAINLY` standard errors."""
    difference_N = gains(rank_N, 10) - gains(best_N, 10)
    error = difference_N.std() / max(1, len(difference_N)) ** 0.5
    return bool(difference_N.mean() < -PLAINLY * error)


def _beside_popularity(rank_N: Ranks, popular_N: Ranks) -> dict[str, float]:
    """Recall@10 of both on all validation events, and on those that a brief fit is validated on."""
    return {
        "popularity_recall@10": recall_at(popular_N, 10),
        "compared_recall@10": recall_at(rank_N[:NUM_COMPARED], 10),
        "compared_popularity_recall@10": recall_at(popular_N[:NUM_COMPARED], 10),
        "num_compared": float(len(rank_N[:NUM_COMPARED])),
    }


class AveragedTraining:
    """A ranker in training, and the moving average of its weights: what it has learned without its jitter."""

    def __init__(
        self, pipeline: Pipeline, ranker: Ranker, examples: list[Example], random: np.random.Generator
    ) -> None:
        self._pipeline = pipeline
        self._examples = examples
        self._random = random
        self._ranker = ranker
        self._optimiser = torch.optim.AdamW(
            self._ranker.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        self._dtype = compute_dtype(torch.device("cpu"))
        self._num_steps = 0
        self.average = copy.deepcopy(self._ranker)

    def one_round(self) -> None:
        """As many passes over the examples as make `MIN_ROUND_STEPS`, but at least one."""
        num_steps = 0
        while num_steps < MIN_ROUND_STEPS:
            order = self._random.permutation(len(self._examples))
            for begin in range(0, len(order), BATCH_SIZE):
                self._step([self._examples[i] for i in order[begin : begin + BATCH_SIZE]])
                num_steps += 1

    def _step(self, examples: list[Example]) -> None:
        batch, targets = example_batch(self._pipeline, examples)
        with autocast(torch.device("cpu"), self._dtype):
            output = self._ranker(batch.in_few_sizes(), self._pipeline.engine.item_ND)
            loss = ranking_loss(output, targets)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._ranker.parameters(), _MAX_GRAD_NORM)
        self._optimiser.step()
        self._num_steps += 1
        decay = min(AVERAGE_DECAY, self._num_steps / (self._num_steps + 10))
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self._ranker.parameters(), strict=True):
                average.lerp_(weight, 1.0 - decay)


@torch.no_grad()
def _validate(pipeline: Pipeline, ranker: Ranker, examples: list[Example | None]) -> Ranks:
    """The rank of each example's item in what serving would answer; -1 for one that nobody proposed."""
    is_proposed_N = np.array([example is not None for example in examples])
    proposed = [example for example in examples if example is not None]
    ranks: list[int] = []
    for begin in range(0, len(proposed), BATCH_SIZE):
        batch, targets = example_batch(pipeline, proposed[begin : begin + BATCH_SIZE])
        relevance_BM = ranker(batch, pipeline.engine.item_ND).relevance_BM
        ranks += (relevance_BM > relevance_BM.gather(1, targets.target_B[:, None])).sum(1).tolist()
    rank_N = np.full(len(examples), -1, dtype=np.int64)
    rank_N[is_proposed_N] = ranks
    return rank_N
