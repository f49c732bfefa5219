"""Predicting events before they are learned, with the very functions that serve.

Owns which events of a micro-batch are predicted, with what excluded, and the ranker's examples that
come of it. A `Forecast` asks the engine for all of them at once (weights do not change inside a batch);
`reach` adds live candidates and features when the stream stands right before an event; `rank_all` ranks.

Every eighth predicted event is asked with the user's own items allowed, as a request with
`include_seen` is, all others with them excluded. A repeat can only be predicted in the former, and is
not scored in the latter.

Shapes: S predicted events, M candidates, C codes of an item, l codes of a prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array, Int64Array
from models.batch import EventBatch
from models.candidates import Candidates
from models.decoding.generation import generate
from models.networks.ranker import Ranker, RankerOutput, RankingBatch, RankingTargets, action_labels
from models.ranking.aversion import standing
from models.ranking.pipeline import Pipeline, with_live
from models.ranking.scorer import order_by_score
from models.sequences.dedupe import hash_id
from models.sequences.histories import Past, UserHistories, pad_pasts

INCLUDE_SEEN_EVERY = 8
_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Question:
    """One wish to predict: its place among those of the batch, what the user wished for and turned down
    before (int64 rows), and whether that may be answered."""

    position: int
    past: Past
    averse_A: Int64Array
    include_seen: bool

    @property
    def exclude(self) -> Int64Array:
        """Rows that must not be answered, ascending int64."""
        if self.include_seen:
            return _NOTHING
        return np.unique(np.concatenate([self.past.item_T, self.averse_A]))


def choose(
    events: EventBatch,
    pasts: Sequence[Past],
    aversions: UserHistories,
    every: int,
    num_before: int,
) -> list[Question]:
    """Every `every`-th wish of a stream of which `num_before` came before these, however it is cut.

    `pasts[n]` is what event n's user had wished for right before it. `aversions` are those of the batches
    before.
    """
    questions: list[Question] = []
    for position in range(-num_before % every, len(events), every):
        ordinal = (num_before + position) // every
        include_seen = ordinal % INCLUDE_SEEN_EVERY == INCLUDE_SEEN_EVERY - 1
        is_repeat = bool((pasts[position].item_T == events.item_N[position]).any())
        if include_seen or not is_repeat:
            averse_A = standing(aversions.get(hash_id(events.user_ids[position])), pasts[position])
            questions.append(Question(position, pasts[position], averse_A, include_seen))
    return questions


class Forecast:
    """What one model answers to the questions of a batch; there must be at least one."""

    def __init__(self, pipeline: Pipeline, questions: list[Question]) -> None:
        self.scorer = pipeline.scorer
        self.questions = questions
        self.history = pad_pasts([one.past for one in questions], pipeline.engine.config.max_history)
        self.generation = generate(
            pipeline.engine,
            self.history,
            k=pipeline.search.num_dense,
            beam=pipeline.search.beam,
            exclude=[one.exclude for one in questions],
        )
        self.candidates: list[Candidates] = []
        self._features: list[Float32Array] = []
        self._target_column: list[int] = []

    def reach(self, row: int, time_ms: int) -> None:
        """The stream stands right before the next question's event, on item `row`.

        An item that nobody proposed is a miss, and no example: put among the candidates, it would be
        recognised by what it lacks (offline that cost a tenth of the NDCG,
        `models/training/ranker_fitting.py`).
        """
        s = len(self.candidates)
        found = with_live(
            self.scorer, self.generation.candidates[s], self.history, s, time_ms, self.questions[s].exclude
        )
        column = np.nonzero(found.row_M == row)[0]
        self.candidates.append(found)
        self._features.append(self.scorer.features(self.history, s, found.row_M, time_ms))
        self._target_column.append(int(column[0]) if len(column) else -1)

    def rank_all(self) -> RankerOutput:
        """Ranks all candidates of all reached questions in one pass, as serving does."""
        return self.scorer.engine.rank(self._batch())

    def learn_from(self, ranker: Ranker) -> RankerOutput:
        """`rank_all` by the network itself, whose weights are the engine's, with a graph."""
        output: RankerOutput = ranker(self._batch().in_few_sizes(), self.scorer.engine.item_ND)
        return output

    def _batch(self) -> RankingBatch:
        return self.scorer.batch(self.history, self.candidates, self._features, self.generation.state_BD)

    def target_ranks(self, relevance_BM: Tensor) -> list[int]:
        """For each question the 0-based rank of the event's item (ties by item id), -1 if not proposed.

        As served: with the penalty for what the user turned down taken off `relevance_BM` (float32 logits).
        """
        ranks = []
        for s, candidates in enumerate(self.candidates):
            if self._target_column[s] < 0:
                ranks.append(-1)
                continue
            row_M, item_ids = candidates.row_M, self.scorer.catalogue.item_ids
            averse_A = self.questions[s].averse_A
            penalty_M = self.scorer.penalty(self.history, s, row_M, averse_A)
            score_M = relevance_BM[s, : len(row_M)].numpy() - penalty_M
            order = order_by_score(score_M, row_M, item_ids)
            ranks.append(int(np.nonzero(order == self._target_column[s])[0][0]))
        return ranks

    def targets(self, events: EventBatch) -> RankingTargets:
        """What the ranker is to learn from these questions of `events`."""
        position_S = np.asarray([one.position for one in self.questions])
        action_S = events.action_N[position_S]
        return RankingTargets(
            target_B=torch.tensor(self._target_column),
            chosen_B=torch.ones(len(action_S), dtype=torch.bool),
            action_BA=action_labels(torch.from_numpy(action_S), torch.from_numpy(events.value_N[position_S])),
        )

    def prefix_hits(self, s: int, row: int) -> list[bool]:
        """Whether the beam of question `s` held the right first l codes of an item, for l from 1 to C."""
        codes_C = self.scorer.catalogue.codes_NC[row].numpy()
        search = self.generation.search
        if search is None:
            return []
        return [
            bool((prefix_BKl[s].numpy() == codes_C[: prefix_BKl.shape[2]]).all(axis=1).any())
            for prefix_BKl in search.prefixes
        ]
