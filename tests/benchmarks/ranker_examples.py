"""Ranking examples of past events, one request with one candidate each, as they stood right before them.

Owns how they are made and batched; what is fitted to them is others'. The candidate is the event's own item:
what is asked is how the user will act on it.

Shapes: B examples, T history, F live features, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array
from models.batch import EventBatch
from models.candidates import Candidates, Source, proposed_by
from models.catalogue.index import CatalogueIndex
from models.networks.ranker import LIKE, RankingBatch, RankingTargets, action_labels
from models.ranking.pipeline import Pipeline
from models.sequences.histories import Past, pad_pasts

DAY_MS = 86_400_000
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Examples:
    """B examples with their users' states; `user_B` numbers of users, `label_BA` what the event stood for."""

    past_B: list[Past]
    candidates_B: list[Candidates]
    features_BMF: list[Float32Array]
    state_BD: Tensor
    label_BA: Tensor
    user_B: np.ndarray

    def __len__(self) -> int:
        return len(self.past_B)

    @property
    def liked_B(self) -> np.ndarray:
        """Bool [B]: whether the event counts as a like."""
        return self.label_BA[:, LIKE].numpy() > 0

    def batches(
        self, pipeline: Pipeline, order: np.ndarray, size: int
    ) -> Iterator[tuple[RankingBatch, RankingTargets]]:
        """The examples in `order`, `size` at a time."""
        max_history = pipeline.engine.config.max_history
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            batch = pipeline.scorer.batch(
                pad_pasts([self.past_B[b] for b in chosen], max_history),
                [self.candidates_B[b] for b in chosen],
                [self.features_BMF[b] for b in chosen],
                self.state_BD[torch.from_numpy(chosen)],
            )
            yield (
                batch,
                RankingTargets(
                    target_B=torch.zeros(len(chosen), dtype=torch.int64),
                    chosen_B=torch.zeros(len(chosen), dtype=torch.bool),
                    action_BA=self.label_BA[torch.from_numpy(chosen)],
                ),
            )


def follow(pipeline: Pipeline, events: EventBatch, begin: int, end: int) -> Examples:
    """Examples of the events from `begin` to `end`, in time order; the statistics take in all up to `end`."""
    catalogue, statistics = pipeline.engine.catalogue, pipeline.scorer.statistics
    max_history = pipeline.engine.config.max_history
    past_of: dict[str, Past] = {}
    pasts, candidates, features, users = [], [], [], []
    for n in range(end):
        user, row, time_ms = events.user_ids[n], int(events.item_N[n]), int(events.time_ms_N[n])
        past = past_of.get(user, _NOTHING)
        if n >= begin:
            one = proposed_by(Source.DENSE, np.asarray([row]))
            pasts.append(past)
            candidates.append(one)
            last_ms = int(past.time_ms_T[-1]) if len(past) else 0
            features.append(pipeline.scorer.feature_source.features(one.row_M, past.item_T, last_ms, time_ms))
            users.append(user)
        statistics.update(user, catalogue.item_ids[row], int(events.action_N[n]), time_ms)
        past_of[user] = Past(
            np.append(past.item_T, row)[-max_history:],
            np.append(past.action_T, events.action_N[n])[-max_history:],
            np.append(past.time_ms_T, time_ms)[-max_history:],
        )
    _, user_B = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)
    return Examples(
        past_B=pasts,
        candidates_B=candidates,
        features_BMF=features,
        state_BD=_states(pipeline, pasts),
        label_BA=action_labels(
            torch.from_numpy(events.action_N[begin:end]), torch.from_numpy(events.value_N[begin:end])
        ),
        user_B=user_B,
    )


_NOTHING = Past(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))


def _states(pipeline: Pipeline, pasts: list[Past]) -> Tensor:
    engine, states = pipeline.engine, []
    for begin in range(0, len(pasts), _BATCH):
        history = pad_pasts(pasts[begin : begin + _BATCH], engine.config.max_history)
        states.append(engine.states(history).state_BD.float())
    return torch.cat(states)


def announced_at_first_event(
    catalogue: CatalogueIndex, events: EventBatch, first_day: int
) -> tuple[CatalogueIndex, np.ndarray]:
    """A copy with each item announced at its first event, available if that was before; and the days [N]."""
    copied = catalogue.copy()
    first_N = np.full(len(copied), np.iinfo(np.int64).max)
    np.minimum.at(first_N, events.item_N, events.time_ms_N)
    for row in np.unique(events.item_N).tolist():
        copied.insert(
            copied.item_ids[row],
            copied.codes_NC[row].tolist(),
            copied.content_NE[row],
            available=bool(first_N[row] // DAY_MS < first_day),
            announced_ms=int(first_N[row]),
        )
    return copied, first_N // DAY_MS
