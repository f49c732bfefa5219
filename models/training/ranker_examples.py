"""The examples that a ranker is fitted on: what all sources proposed for a held-out event, right before it.

Owns how they are collected and put into a batch; `models/training/ranker_fitting.py` learns from
them.

Shapes: B requests, M candidates, F live features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array
from models.batch import EventBatch, HistoryBatch
from models.candidates import Candidates
from models.decoding.generation import generate
from models.measures.ranking_metrics import Ranks
from models.measures.windowed_popularity import WindowedPopularity
from models.networks.ranker import RankingBatch, RankingTargets, action_labels
from models.progress import Progress
from models.ranking.pipeline import Pipeline, with_live
from models.ranking.statistics_follower import StatisticsFollower
from models.sequences.holdout import HoldoutCases

BATCH_SIZE = 64
# Popularity is that of so many newest events, as for the learner's own figures.
POPULARITY_WINDOW = 5_000
_COLLECTING = "collecting candidates"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One request with its item at `target` of the candidates."""

    history: HistoryBatch
    candidates: Candidates
    features_MF: Float32Array
    state_1D: Tensor
    target: int
    action_1A: Tensor

    def __len__(self) -> int:
        return len(self.candidates)


def windowed_popularity_ranks(cases: HoldoutCases, known: EventBatch, stream: EventBatch) -> Ranks:
    """Where popularity ranks the item of each case (in time order), int64 [B]: by the newest
    `POPULARITY_WINDOW` wishes before it of `known` and then `stream`, the user's own items left out."""
    popularity = WindowedPopularity(POPULARITY_WINDOW)
    for row in known.item_N[known.is_wish_N][-POPULARITY_WINDOW:].tolist():
        popularity.add(row)
    wishes = stream.select(stream.is_wish_N)
    ranks, num_seen = [], 0
    for row, time_ms, known_rows in zip(
        cases.target_B.tolist(), cases.time_ms_B.tolist(), cases.known_rows(), strict=True
    ):
        while num_seen < len(wishes) and wishes.time_ms_N[num_seen] < time_ms:
            popularity.add(int(wishes.item_N[num_seen]))
            num_seen += 1
        # what the user had before is answered by nobody
        ranks.append(-1 if row in known_rows else popularity.rank(row, known_rows))
    return np.array(ranks, dtype=np.int64)


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
        progress(_COLLECTING, int(part[-1]) + 1, len(cases))
    progress(_COLLECTING, len(examples), len(examples))
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
