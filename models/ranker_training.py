"""Fitting the ranker offline, on held-out events that its generator never learned from.

Owns the examples, the optimiser and when to stop. Each example sees the live statistics as they stood right
before its event, as a request at that moment would have.

Shapes: B requests, M candidates, F live features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import Candidates, EventBatch, HistoryBatch
from models.candidates import Source, proposed_by, unite
from models.features import Float32Array
from models.holdout import HoldoutCases
from models.metrics import ranking_metrics
from models.ranker import RankingBatch, RankingTargets, action_labels, ranking_loss
from models.recommend import Pipeline, with_live
from models.statistics_follower import StatisticsFollower

MAX_EXAMPLES = 30_000
VALIDATION_SHARE = 0.15
BATCH_SIZE = 64
MAX_EPOCHS = 15
PATIENCE_EPOCHS = 2
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
_MAX_GRAD_NORM = 1.0

Progress = Callable[[str, int, int, dict[str, float]], None]
"""`progress(stage, steps done, steps in all, metrics)`."""


@dataclass(frozen=True, kw_only=True)
class _Example:
    """One request with its item at `target` of the candidates; `is_proposed` if a source brought it."""

    history: HistoryBatch
    candidates: Candidates
    features_MF: Float32Array
    state_1D: Tensor
    target: int
    is_proposed: bool
    action_1A: Tensor


def fit_ranker(
    pipeline: Pipeline,
    known: EventBatch,
    held_out: EventBatch,
    *,
    stream: EventBatch,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Fits `pipeline`'s ranker to predict `held_out` from `known`, in place, and returns what it reached.

    `stream` are the events, in stream order, that `pipeline`'s statistics do not hold yet: they take them in
    as far as to right before each held-out event. On Beauty's leave-one-out validation items this gave
    Recall@10 .111, and statistics of the whole of `known` for every example, later events included, .098.

    `held_out` holds events that are wishes for their items, of items that the user did not have in `known`
    (others are left out); at most `MAX_EXAMPLES` of them are drawn. Every seventh or so is kept for
    validation; the weights of the epoch with the best NDCG@10 there stay. The metrics are that epoch's
    recall and NDCG, `blank_ndcg@10` before any fitting, and `candidate_recall`: how often the
    sources together proposed the right item.
    """
    random = np.random.default_rng(seed)
    cases = HoldoutCases.from_events(known, held_out)
    chosen = random.permutation(len(cases))[:MAX_EXAMPLES]
    chosen = chosen[np.argsort(cases.time_ms_B[chosen], kind="stable")]
    follower = StatisticsFollower(pipeline.scorer.statistics, pipeline.scorer.catalogue, stream)
    examples = _collect(pipeline, cases.select(chosen), held_out.select(chosen), follower, progress)
    examples = [examples[i] for i in random.permutation(len(examples))]
    num_validation = int(len(examples) * VALIDATION_SHARE)
    validation, training = examples[:num_validation], examples[num_validation:]
    if not validation:
        return {}
    ranker = pipeline.scorer.ranker
    best = _validate(pipeline, validation)
    figures = {
        "blank_ndcg@10": best["ndcg@10"],
        "candidate_recall": float(np.mean([example.is_proposed for example in validation])),
    }
    best_weights, num_worse = copy.deepcopy(ranker.state_dict()), 0
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for epoch in range(MAX_EPOCHS):
        _train_epoch(pipeline, training, optimiser, random)
        reached = _validate(pipeline, validation)
        if progress is not None:
            progress("fit ranker", epoch + 1, MAX_EPOCHS, reached)
        if reached["ndcg@10"] > best["ndcg@10"]:
            best, best_weights, num_worse = reached, copy.deepcopy(ranker.state_dict()), 0
            continue
        num_worse += 1
        if num_worse > PATIENCE_EPOCHS:
            break
    ranker.load_state_dict(best_weights)
    return {**best, **figures}


def _collect(
    pipeline: Pipeline,
    cases: HoldoutCases,
    events: EventBatch,
    follower: StatisticsFollower,
    progress: Progress | None,
) -> list[_Example]:
    """Asks all sources for the candidates of each case, in time order, as serving does."""
    generator, scorer = pipeline.generator, pipeline.scorer
    examples: list[_Example] = []
    for begin in range(0, len(cases), BATCH_SIZE):
        part = np.arange(begin, min(begin + BATCH_SIZE, len(cases)))
        batch, known_rows = cases.select(part), cases.select(part).known_rows()
        history = batch.histories(generator.recommender.config.max_history)
        found = generator.generate(
            history, k=generator.config.num_dense, beam=generator.config.beam, exclude=known_rows
        )
        label_BA = action_labels(
            torch.from_numpy(events.action_N[part]), torch.from_numpy(events.value_N[part])
        )
        for b, row in enumerate(batch.target_B.tolist()):
            if row in known_rows[b]:
                continue
            time_ms = int(batch.time_ms_B[b])
            follower.reach(time_ms)
            united = with_live(scorer, found.candidates[b], history, b, time_ms, known_rows[b])
            is_proposed = bool((united.row_M == row).any())
            if not is_proposed:
                united = unite([united, proposed_by(Source.DENSE, np.asarray([row]))])
            examples.append(
                _Example(
                    history=_one(history, b),
                    candidates=united,
                    features_MF=scorer.features(history, b, united.row_M, time_ms),
                    state_1D=found.state_BD[b : b + 1],
                    target=int(np.nonzero(united.row_M == row)[0][0]),
                    is_proposed=is_proposed,
                    action_1A=label_BA[b : b + 1],
                )
            )
        if progress is not None:
            progress("collect candidates", int(part[-1]) + 1, len(cases), {})
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


def _batch(pipeline: Pipeline, examples: list[_Example]) -> tuple[RankingBatch, RankingTargets]:
    histories = [example.history for example in examples]
    history = HistoryBatch.from_lists(
        [one.item_BT[0, : int(one.length_B)].tolist() for one in histories],
        [one.action_BT[0, : int(one.length_B)].tolist() for one in histories],
        [one.time_ms_BT[0, : int(one.length_B)].tolist() for one in histories],
        max_history=pipeline.generator.recommender.config.max_history,
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


def _train_epoch(
    pipeline: Pipeline, examples: list[_Example], optimiser: torch.optim.AdamW, random: np.random.Generator
) -> None:
    ranker = pipeline.scorer.ranker
    order = random.permutation(len(examples))
    for begin in range(0, len(order), BATCH_SIZE):
        batch, targets = _batch(pipeline, [examples[i] for i in order[begin : begin + BATCH_SIZE]])
        loss = ranking_loss(ranker(batch, pipeline.table.item_ND), targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(ranker.parameters(), _MAX_GRAD_NORM)
        optimiser.step()


@torch.no_grad()
def _validate(pipeline: Pipeline, examples: list[_Example]) -> dict[str, float]:
    """Recall and NDCG of what serving would answer: an item that nobody proposed is a miss."""
    ranks: list[int] = []
    for begin in range(0, len(examples), BATCH_SIZE):
        part = examples[begin : begin + BATCH_SIZE]
        batch, targets = _batch(pipeline, part)
        relevance_BM = pipeline.scorer.ranker(batch, pipeline.table.item_ND).relevance_BM
        rank_B = (relevance_BM > relevance_BM.gather(1, targets.target_B[:, None])).sum(1)
        ranks += [int(rank) if one.is_proposed else -1 for rank, one in zip(rank_B, part, strict=True)]
    return ranking_metrics(np.asarray(ranks, dtype=np.int64))
