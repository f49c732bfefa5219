"""Held-out items ranked by the dense head among the whole catalogue.

Owns the ranking protocol shared by validation and evaluation: every available catalogue item competes
except those in the user's known history, which are excluded. A target that is itself excluded counts as
a miss. Knows nothing of how the recommender was trained.

Shapes: B cases, N catalogue rows, D width, X excluded items of all cases.
"""

import numpy as np
import torch
from torch import Tensor

from models.device import autocast
from models.measures.ranking_metrics import Ranks, ranks_of_targets
from models.networks.recommender import GenerativeRecommender
from models.sequences.holdout import HoldoutCases


@torch.no_grad()
def dense_ranks(
    recommender: GenerativeRecommender,
    cases: HoldoutCases,
    item_ND: Tensor,
    vector_ND: Tensor,
    available_N: Tensor,
    dtype: torch.dtype,
    batch_size: int = 512,
) -> Ranks:
    """The rank of each case's target by the dense head over the whole catalogue, -1 where excluded.

    `item_ND` and `vector_ND` are the encoded catalogue; `available_N` bool.
    """
    recommender.eval()
    rank_B = np.full(len(cases), -1, dtype=np.int64)
    for chosen, part in cases.batches(batch_size):
        distinct, user_of_case = part.of_distinct_users()
        with autocast(item_ND.device, dtype):
            history = distinct.histories(recommender.config.max_history)
            state_BD = recommender.last_state(history, item_ND)[torch.from_numpy(user_of_case)]
            logits_BN = recommender.dense_logits(state_BD, vector_ND).float()
        logits_BN.masked_fill_(~available_N, -torch.inf)
        known = part.known_rows()
        case_X = np.repeat(np.arange(len(known)), [len(rows) for rows in known])
        logits_BN[torch.from_numpy(case_X), torch.from_numpy(np.concatenate(known))] = -torch.inf
        rank_B[chosen] = ranks_of_targets(logits_BN, torch.from_numpy(part.target_B))
    return rank_B
