"""Ranking metrics as pure functions of 0-based ranks and of beam prefixes.

Every case has exactly one right item. Knows nothing of models or protocols.

Shapes: N cases, K list positions, C codes of an item, l codes of a prefix.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from models.arrays import BoolArray, Float64Array, Int64Array

Ranks = Int64Array
"""int64 [N]: 0 is the top of the list; a negative rank means that the item is not in it."""


def hits(rank_N: Ranks, k: int) -> BoolArray:
    """Whether each right item is among the first k, bool [N]."""
    return np.asarray((rank_N >= 0) & (rank_N < k))


def recall_at(rank_N: Ranks, k: int) -> float:
    """The share of cases whose right item is among the first k; 0 without cases."""
    return float(hits(rank_N, k).mean()) if len(rank_N) else 0.0


def gains(rank_N: Ranks, k: int) -> Float64Array:
    """Of each case 1 / log2(rank + 2), 0 for a right item outside the first k, float64 [N]."""
    return np.where(hits(rank_N, k), 1.0 / np.log2(np.maximum(rank_N, 0) + 2.0), 0.0)


def ndcg_at(rank_N: Ranks, k: int) -> float:
    """Mean of 1 / log2(rank + 2) over all cases, 0 for a right item outside the first k; 0 without cases.

    With one right item the ideal DCG (Järvelin and Kekäläinen, 2002) is 1: rank 0 gives 1, rank 2 gives 1 /
    log2(4) = 0.5.
    """
    return float(gains(rank_N, k).mean()) if len(rank_N) else 0.0


def ranking_metrics(rank_N: Ranks, ks: Sequence[int] = (5, 10)) -> dict[str, float]:
    """{"recall@k", "ndcg@k"} for each k."""
    figures = {f"recall@{k}": recall_at(rank_N, k) for k in ks}
    return figures | {f"ndcg@{k}": ndcg_at(rank_N, k) for k in ks}


def ranks_in_lists(listed_NK: Int64Array, target_N: Int64Array) -> Ranks:
    """Where each target row (int64 [N]) is in its list (int64 [N, K], padded with -1); -1 if missing."""
    match_NK = (listed_NK == target_N[:, None]) & (target_N >= 0)[:, None]
    return np.where(match_NK.any(axis=1), match_NK.argmax(axis=1), -1)


def ranks_of_targets(logits_NM: Tensor, target_N: Tensor) -> Ranks:
    """The int64 rank of each target column among all columns of floating logits; excluded ones hold -inf.

    Ties count half against the target (rounded down), so that a model that scores everything alike gets the
    middle of the list and not its top. An excluded target has rank -1.
    """
    target_logit_N1 = logits_NM.gather(1, target_N[:, None])
    better_N = (logits_NM > target_logit_N1).sum(1)
    ties_N = (logits_NM == target_logit_N1).sum(1) - 1
    rank_N = better_N + ties_N // 2
    return np.asarray(rank_N.masked_fill(target_logit_N1[:, 0].isneginf(), -1).cpu().numpy())


def hierarchical_recall(prefix_NKl: Int64Array, codes_NC: Int64Array) -> float:
    """The share of cases where a beam holds the right first l codes (int64); beams of -1 never match."""
    length = prefix_NKl.shape[2]
    if not len(prefix_NKl):
        return 0.0
    found_N = (prefix_NKl == codes_NC[:, None, :length]).all(axis=2).any(axis=1)
    return float(found_N.mean())
