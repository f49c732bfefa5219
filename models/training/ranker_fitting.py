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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.arrays import Float32Array
from models.batch import EventBatch, HistoryBatch
from models.candidates import Candidates
from models.decoding.generation import generate
from models.device import autocast, compute_dtype
from models.measures.ranking_metrics import ranking_metrics
from models.networks.ranker import Ranker, RankingBatch, RankingTargets, action_labels, ranking_loss
from models.progress import Progress, quietly
from models.ranking.pipeline import Pipeline, with_live
from models.ranking.statistics_follower import StatisticsFollower
from models.sequences.holdout import HoldoutCases

MAX_EXAMPLES = 30_000
VALIDATION_SHARE = 0.15
BATCH_SIZE = 64
# A round is a pass over the examples, or more where they are few.
MIN_ROUND_STEPS = 40
MAX_ROUNDS = 20
PATIENCE_ROUNDS = 3
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
AVERAGE_DECAY = 0.98
_MAX_GRAD_NORM = 1.0
# Under a time limit, the collecting of candidates ends at this share of it.
_COLLECT_UNTIL = 0.7


@dataclass(frozen=True, kw_only=True)
class Example:
    """One request with its item at `target` of the candidates."""

    history: HistoryBatch
    candidates: Candidates
    features_MF: Float32Array
    state_1D: Tensor
    target: int
    action_1A: Tensor


def fit_ranker(
    pipeline: Pipeline,
    known: EventBatch,
    held_out: EventBatch,
    *,
    stream: EventBatch,
    seed: int,
    progress: Progress = quietly,
    time_share: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Fits `pipeline`'s ranker to predict `held_out` from `known`, in place, and returns what it reached.

    `stream` are the events, in stream order, that `pipeline`'s statistics do not hold yet: the statistics
    take them in up to the moment right before each held-out event. On Beauty's leave-one-out validation items
    this gave Recall@10 .111; statistics of the whole of `known` for every example, later events included,
    gave .098.

    `held_out` must hold wishes only; those for items that the user already had in `known` are left out, and
    at most `MAX_EXAMPLES` are drawn. `VALIDATION_SHARE` of the examples is kept for validation; the averaged
    weights of the round with the best NDCG@10 there stay. The metrics are that round's recall and NDCG,
    `blank_ndcg@10` before any fitting, and `candidate_recall`: how often the sources together proposed the
    right item; none where there are too few examples to validate. `time_share()` says how much of the time is
    used up, 0 to 1, where there is a limit: fewer examples are collected then, and no round begins at 1.
    """
    time_share = time_share or (lambda: 0.0)
    random = np.random.default_rng(seed)
    cases = HoldoutCases.from_events(known, held_out)
    chosen = random.permutation(len(cases))[:MAX_EXAMPLES]
    chosen = chosen[np.argsort(cases.time_ms_B[chosen], kind="stable")]
    follower = StatisticsFollower(pipeline.scorer.statistics, pipeline.scorer.catalogue, stream)
    asked = collect_examples(
        pipeline,
        cases.select(chosen),
        held_out.select(chosen),
        follower,
        progress,
        is_over=lambda: time_share() >= _COLLECT_UNTIL,
    )
    return fit_examples(
        pipeline, asked, random=random, progress=progress, is_over=lambda: time_share() >= 1.0
    )


def fit_examples(
    pipeline: Pipeline,
    asked: list[Example | None],
    *,
    random: np.random.Generator,
    validation_share: float = VALIDATION_SHARE,
    progress: Progress = quietly,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """`fit_ranker` with examples that were collected before, None where nobody proposed the item."""
    asked = [asked[i] for i in random.permutation(len(asked))]
    num_validation = int(len(asked) * validation_share)
    if not num_validation:
        return {}
    validation = asked[:num_validation]
    training = [example for example in asked[num_validation:] if example is not None]
    ranker = pipeline.ranker
    best = _validate(pipeline, ranker, validation)
    figures = {
        "blank_ndcg@10": best["ndcg@10"],
        "candidate_recall": float(np.mean([example is not None for example in validation])),
    }
    best_weights, num_worse = copy.deepcopy(ranker.state_dict()), 0
    trained = AveragedTraining(pipeline, ranker, training, random)
    for round_ in range(MAX_ROUNDS if training else 0):
        if is_over():
            break
        trained.one_round()
        reached = _validate(pipeline, trained.average, validation)
        progress("fit ranker", round_ + 1, MAX_ROUNDS, reached)
        if reached["ndcg@10"] > best["ndcg@10"]:
            best, best_weights, num_worse = reached, copy.deepcopy(trained.average.state_dict()), 0
            continue
        num_worse += 1
        if num_worse > PATIENCE_ROUNDS:
            break
    ranker.load_state_dict(best_weights)
    pipeline.weights_changed()
    return {**best, **figures}


def collect_examples(
    pipeline: Pipeline,
    cases: HoldoutCases,
    events: EventBatch,
    follower: StatisticsFollower,
    progress: Progress,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Example | None]:
    """Asks all sources for the candidates of each case, in time order; None where none had the item.

    Of the first cases only, if `is_over()` before the last.
    """
    engine, scorer, search = pipeline.engine, pipeline.scorer, pipeline.search
    examples: list[Example | None] = []
    for begin in range(0, len(cases), BATCH_SIZE):
        if is_over():
            break
        part = np.arange(begin, min(begin + BATCH_SIZE, len(cases)))
        batch, known_rows = cases.select(part), cases.select(part).known_rows()
        history = batch.histories(engine.config.max_history)
        found = generate(engine, history, k=search.num_dense, beam=search.beam, exclude=known_rows)
        label_BA = action_labels(
            torch.from_numpy(events.action_N[part]), torch.from_numpy(events.value_N[part])
        )
        for b, row in enumerate(batch.target_B.tolist()):
            if row in known_rows[b]:
                continue
            time_ms = int(batch.time_ms_B[b])
            follower.reach(time_ms)
            united = with_live(scorer, found.candidates[b], history, b, time_ms, known_rows[b])
            place = np.nonzero(united.row_M == row)[0]
            if not len(place):
                examples.append(None)
                continue
            examples.append(
                Example(
                    history=_one(history, b),
                    candidates=united,
                    features_MF=scorer.features(history, b, united.row_M, time_ms),
                    state_1D=found.state_BD[b : b + 1],
                    target=int(place[0]),
                    action_1A=label_BA[b : b + 1],
                )
            )
        progress("collect candidates", int(part[-1]) + 1, len(cases))
    return examples


def _one(history: HistoryBatch, b: int) -> HistoryBatch:
    """Request `b` alone, without padding."""
    width = max(1, int(history.length_B[b]))
    return HistoryBatch(
        item_BT=history.item_BT[b : b + 1, :width],
        action_BT=history.action_BT[b : b + 1, :width],
        time_ms_BT=history.time_ms_BT[b : b + 1, :width],
        length_B=history.length_B[b : b + 1],
    )


def example_batch(pipeline: Pipeline, examples: list[Example]) -> tuple[RankingBatch, RankingTargets]:
    """The examples as one input of the ranker, and what it is to learn from them."""
    histories = [example.history for example in examples]
    history = HistoryBatch.from_lists(
        [one.item_BT[0, : int(one.length_B)].tolist() for one in histories],
        [one.action_BT[0, : int(one.length_B)].tolist() for one in histories],
        [one.time_ms_BT[0, : int(one.length_B)].tolist() for one in histories],
        max_history=pipeline.engine.config.max_history,
    )
    batch = pipeline.scorer.batch(
        history,
        [example.candidates for example in examples],
        [example.features_MF for example in examples],
        torch.cat([example.state_1D for example in examples]),
    )
    return batch, RankingTargets(
        target_B=torch.tensor([example.target for example in examples]),
        chosen_B=torch.ones(len(examples), dtype=torch.bool),
        action_BA=torch.cat([example.action_1A for example in examples]),
    )


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
            self._ranker.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
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
            loss = ranking_loss(self._ranker(batch, self._pipeline.engine.item_ND), targets)
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
def _validate(pipeline: Pipeline, ranker: Ranker, examples: list[Example | None]) -> dict[str, float]:
    """Recall and NDCG of what serving would answer: an item that nobody proposed is a miss."""
    proposed = [example for example in examples if example is not None]
    ranks = [-1] * (len(examples) - len(proposed))
    for begin in range(0, len(proposed), BATCH_SIZE):
        batch, targets = example_batch(pipeline, proposed[begin : begin + BATCH_SIZE])
        relevance_BM = ranker(batch, pipeline.engine.item_ND).relevance_BM
        ranks += (relevance_BM > relevance_BM.gather(1, targets.target_B[:, None])).sum(1).tolist()
    return ranking_metrics(np.asarray(ranks, dtype=np.int64))
