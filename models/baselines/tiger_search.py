"""Beam search over code tuples that are items, for TIGER; apart from Headrace's own on purpose.

Log-probabilities are of all codes of a level; codes that lead to no item get none of the beams. Excluded
items are left out at the last code only, as a plain implementation would.

Shapes: B requests, K beams, F children of a node, N items, C codes of an item, V codes of the level,
l codes so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array


@dataclass(frozen=True)
class Found:
    """Items of B requests, best first: `row_BK` int64 (-1: no item), `score_BK` float32 (-inf there)."""

    row_BK: Tensor
    score_BK: Tensor


class CodeTable:
    """The prefixes of N distinct code tuples (int64): in sorted order, the children of a node stand together.

    Raises ValueError if two items have the same codes.
    """

    def __init__(self, codes_NC: Tensor) -> None:
        codes = codes_NC.numpy()
        self.row_N = torch.from_numpy(np.lexsort(codes.T[::-1]).astype(np.int64))
        codes = codes[self.row_N]
        self.num_codes = codes.shape[1]
        self.begin: list[Tensor] = []
        """`begin[d][n]` to `begin[d][n + 1]` are the children of node n of depth d."""
        self.code: list[Tensor] = []
        """`code[d][n]` is the last code of node n of depth d + 1."""
        first_N = np.zeros(len(codes), dtype=np.bool_)
        first_N[:1] = True
        for depth in range(self.num_codes):
            begins_here_N = first_N.copy()
            begins_here_N[1:] |= (codes[1:, : depth + 1] != codes[:-1, : depth + 1]).any(1)
            child_of_N = np.cumsum(begins_here_N) - 1
            begin = np.append(child_of_N[first_N], begins_here_N.sum())
            self.begin.append(torch.from_numpy(begin.astype(np.int64)))
            self.code.append(torch.from_numpy(codes[begins_here_N, depth]))
            first_N = begins_here_N
        if not bool(first_N.all()):
            raise ValueError("two items have the same codes")

    def children(self, depth: int, node_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Children int64 [B, K, F] of nodes of `depth`, and which exist, bool; F is the most that one has."""
        begin_BK, end_BK = self.begin[depth][node_BK], self.begin[depth][node_BK + 1]
        most = int((end_BK - begin_BK).max())
        child_BKF = begin_BK[..., None] + torch.arange(most)
        there_BKF = child_BKF < end_BK[..., None]
        return child_BKF.where(there_BKF, 0), there_BKF


def search_codes(
    code_logits: Callable[[Tensor], Tensor],
    table: CodeTable,
    *,
    batch_size: int,
    k: int,
    beam: int,
    exclude: Sequence[Int64Array],
) -> Found:
    """The `k` best items of each request, fewer where there are fewer in the beams.

    `code_logits` takes int64 prefixes [B, K, l] and gives floating [B, K, V]. `exclude` holds int64 rows (>=
    0) for each request.
    """
    hidden_BN = torch.zeros(batch_size, len(table.row_N), dtype=torch.bool)
    for b, rows in enumerate(exclude):
        hidden_BN[b, torch.from_numpy(rows)] = True
    prefix_BKl = torch.zeros(batch_size, 1, 0, dtype=torch.int64)
    node_BK = torch.zeros(batch_size, 1, dtype=torch.int64)
    score_BK = torch.zeros(batch_size, 1)
    for depth in range(table.num_codes):
        log_p_BKV = code_logits(prefix_BKl).float().log_softmax(-1)
        child_BKF, there_BKF = table.children(depth, node_BK)
        code_BKF = table.code[depth][child_BKF]
        score_BKF = score_BK[..., None] + log_p_BKV.gather(2, code_BKF)
        last = depth == table.num_codes - 1
        if last:
            there_BKF &= ~hidden_BN.gather(1, table.row_N[child_BKF].flatten(1)).view_as(there_BKF)
        score_BKF = score_BKF.masked_fill(~there_BKF, -torch.inf)
        width = min(k if last else beam, score_BKF[0].numel())
        score_BK, place_BK = score_BKF.flatten(1).topk(width, dim=1)
        parent_BK = place_BK // child_BKF.shape[2]
        node_BK = child_BKF.flatten(1).gather(1, place_BK)
        code_BK1 = code_BKF.flatten(1).gather(1, place_BK)[..., None]
        parent_BKl = parent_BK[..., None].expand(-1, -1, prefix_BKl.shape[2])
        prefix_BKl = torch.cat([prefix_BKl.gather(1, parent_BKl), code_BK1], dim=2)
    row_BK = table.row_N[node_BK].masked_fill(score_BK.isneginf(), -1)
    return Found(row_BK, score_BK)
