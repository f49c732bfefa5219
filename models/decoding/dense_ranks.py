"""Held-out items ranked by the dense head among the whole catalogue.

Owns the ranking protocol shared by validation and evaluation: every available catalogue item competes
except those in the user's known history, which are excluded. A target that is itself excluded counts as
a miss. Knows nothing of how the recommender was trained.

Shapes: B cases, N catalogue rows, X excluded items of all cases.
"""

import numpy as np
import torch

from models.decoding.engine import Engine
from models.measures.ranking_metrics import Ranks, ranks_of_targets
from models.sequences.holdout import HoldoutCases


def dense_ranks(engine: Engine, cases: HoldoutCases, batch_size: int = 128) -> Ranks:
    """The rank of each case's target by the dense head, int64 [B], -1 where excluded."""
    unavailable_N = ~torch.from_numpy(np.asarray(engine.catalogue.available_N))
    rank_B = np.full(len(cases), -1, dtype=np.int64)
    for chosen, part in cases.batches(batch_size):
        distinct, state_of_case = part.of_distinct_histories()
        states = engine.states(distinct.histories(engine.config.max_history))
        logits_BN = engine.dense_logits(states.state_BD[torch.from_numpy(state_of_case)])
        logits_BN.masked_fill_(unavailable_N, -torch.inf)
        known = part.known_rows()
        case_X = np.repeat(np.arange(len(known)), [len(rows) for rows in known])
        logits_BN[torch.from_numpy(case_X), torch.from_numpy(np.concatenate(known))] = -torch.inf
        rank_B[chosen] = ranks_of_targets(logits_BN, torch.from_numpy(part.target_B))
    return rank_B
