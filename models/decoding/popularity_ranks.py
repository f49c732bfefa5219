"""Held-out items ranked by their popularity: what a model has to beat to have learned anything about a user.

Knows counts only. Shapes: B cases, N catalogue rows.
"""

import numpy as np
import torch

from models.batch import EventBatch
from models.measures.ranking_metrics import Ranks, ranks_of_targets
from models.sequences.holdout import HoldoutCases

_BATCH = 1_024


def popularity_ranks(cases: HoldoutCases, known: EventBatch, num_items: int) -> Ranks:
    """The rank of each case's item by its number of events in `known`, int64 [B].

    Items of the case's own history are excluded, ties count half
    (`models.measures.ranking_metrics.ranks_of_targets`).
    """
    count_N = torch.from_numpy(np.bincount(known.item_N, minlength=num_items)).float()
    rank_B = np.empty(len(cases), dtype=np.int64)
    for start in range(0, len(cases), _BATCH):
        part = cases.select(np.arange(start, min(start + _BATCH, len(cases))))
        score_BN = count_N.repeat(len(part), 1)
        for b, rows in enumerate(part.known_rows()):
            score_BN[b, torch.from_numpy(rows)] = -torch.inf
        rank_B[start : start + len(part)] = ranks_of_targets(score_BN, torch.from_numpy(part.target_B))
    return rank_B
