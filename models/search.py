"""Beam search constrained by the trie: k distinct, available items for each request of a batch.

A step scores the children that exist and keeps the best of all of them. It knows the trie and a
callable that gives logits, not the network behind it. `models/search_reference.py` says the same
slowly and plainly, and the tests compare the two.

Two invariants carry the rest:
- The beams of a request stay in ascending order of their codes. Children come out in the same order,
  so the position of a child is its rank by code, and ties go to the lower position.
- Scores are log-probabilities over all V codes, in float32, so that they do not depend on which
  items the catalogue holds.

Shape letters: B batch, K beams, V codebook size, C codes of an item, l codes so far, R children of
all beams, M children of one request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import Int64Array
from models.trie import Trie, TrieView

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SearchResult:
    """The best items of B requests, best first; ties are in ascending order of their codes.

    `row_BK` int64, -1 where fewer than k were found; `score_BK` float32 log-probabilities, -inf there.
    `prefixes[l - 1]` int64 [B, K_l, l]: the beams kept after l codes, in ascending order, -1 padded;
    the share of requests whose true prefix is among them is the hierarchical recall at level l.
    """

    row_BK: Tensor
    score_BK: Tensor
    prefixes: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Beams:
    prefix_BKl: Tensor
    node_BK: Tensor
    score_BK: Tensor
    valid_BK: Tensor


class _Excluded:
    """How many available items below each node are excluded from each request."""

    def __init__(self, view: TrieView, exclude: Sequence[Int64Array], device: torch.device) -> None:
        row_X = torch.from_numpy(np.concatenate([np.asarray(rows, np.int64) for rows in exclude])).to(device)
        length_B = torch.tensor([len(rows) for rows in exclude], device=device)
        batch_X = torch.repeat_interleave(length_B)
        known_X = row_X >= 0
        pair_X2 = torch.unique(torch.stack([batch_X[known_X], row_X[known_X]], dim=1), dim=0)
        leaf_X = view.nodes(view.num_codes, pair_X2[:, 1])
        pair_X2 = pair_X2[view.num_available(view.num_codes, leaf_X) > 0]
        self._levels = []
        for depth in range(1, view.num_codes + 1):
            key_X = pair_X2[:, 0] * view.num_nodes(depth) + view.nodes(depth, pair_X2[:, 1])
            self._levels.append((view.num_nodes(depth), *torch.unique(key_X, return_counts=True)))

    def count(self, depth: int, batch_R: Tensor, node_R: Tensor) -> Tensor:
        """The excluded items at or below each node for each request, int64 [R]."""
        num_nodes, key_X, count_X = self._levels[depth - 1]
        if not len(key_X):
            return torch.zeros_like(node_R)
        key_R = batch_R * num_nodes + node_R
        at_R = torch.searchsorted(key_X, key_R).clamp(max=len(key_X) - 1)
        return torch.where(key_X[at_R] == key_R, count_X[at_R], 0)


def beam_search(
    code_logits: Callable[[Tensor], Tensor],
    trie: Trie,
    *,
    batch_size: int,
    k: int,
    beam: int,
    exclude: Sequence[Int64Array] | None = None,
    device: torch.device = _CPU,
) -> SearchResult:
    """The k best items of each request, or all that there are when they are fewer.

    `code_logits` takes int64 prefixes [B, K, l] (l from 0 to C - 1) and gives logits [B, K, V] on
    `device`; what it says of padding beams, whose codes are 0, is not used. `beam` prefixes are kept
    after every code but the last. `exclude` holds int64 rows for each request that must not be
    returned; -1 and repeats are ignored. A subtree with nothing left to return takes no beam.

    With a beam as large as the catalogue the result is exact. A request's result does not depend on
    the rest of its batch, as far as `code_logits` does not.
    """
    if k < 1 or beam < 1:
        raise ValueError("k and beam must be at least 1")
    if exclude is not None and len(exclude) != batch_size:
        raise ValueError(f"{len(exclude)} lists of excluded rows for a batch of {batch_size}")
    view = trie.view(device)
    excluded = _Excluded(view, exclude, device) if exclude and any(map(len, exclude)) else None
    beams = _Beams(
        prefix_BKl=torch.zeros(batch_size, 1, 0, dtype=torch.int64, device=device),
        node_BK=torch.zeros(batch_size, 1, dtype=torch.int64, device=device),
        score_BK=torch.zeros(batch_size, 1, device=device),
        valid_BK=torch.ones(batch_size, 1, dtype=torch.bool, device=device),
    )
    prefixes = []
    for depth in range(view.num_codes):
        width = k if depth == view.num_codes - 1 else beam
        beams = _step(code_logits, view, depth, beams, excluded, width)
        prefixes.append(beams.prefix_BKl.masked_fill(~beams.valid_BK[..., None], -1))
    return _finish(view, beams, k, tuple(prefixes))


def _step(
    code_logits: Callable[[Tensor], Tensor],
    view: TrieView,
    depth: int,
    beams: _Beams,
    excluded: _Excluded | None,
    width: int,
) -> _Beams:
    """The best `width` children of each request's beams."""
    batch_size, num_beams = beams.node_BK.shape
    log_probability_BKV = torch.log_softmax(code_logits(beams.prefix_BKl).float(), dim=-1)
    parent_Q = beams.valid_BK.flatten().nonzero().squeeze(1)
    query_R, code_R, child_R = view.children(depth, beams.node_BK.flatten()[parent_Q])
    parent_R = parent_Q[query_R]
    if excluded is not None:
        hidden_R = excluded.count(depth + 1, parent_R // num_beams, child_R)
        kept_R = view.num_available(depth + 1, child_R) > hidden_R
        parent_R, code_R, child_R = parent_R[kept_R], code_R[kept_R], child_R[kept_R]
    score_R = beams.score_BK.flatten()[parent_R] + log_probability_BKV.flatten(0, 1)[parent_R, code_R]
    batch_R = parent_R // num_beams
    best_R = _best(batch_R, score_R, batch_size, width)
    parent_R, code_R, batch_R = parent_R[best_R], code_R[best_R], batch_R[best_R]
    prefix_Rl = torch.cat([beams.prefix_BKl.flatten(0, 1)[parent_R], code_R[:, None]], dim=1)
    place_R, num_places = _places(batch_R, batch_size)

    def placed(value_R: Tensor, fill: float) -> Tensor:
        padded = value_R.new_full((batch_size, num_places, *value_R.shape[1:]), fill)
        padded[batch_R, place_R] = value_R
        return padded

    return _Beams(
        prefix_BKl=placed(prefix_Rl, 0),
        node_BK=placed(child_R[best_R], 0),
        score_BK=placed(score_R[best_R], -torch.inf),
        valid_BK=placed(torch.ones_like(code_R, dtype=torch.bool), False),
    )


def _places(batch_R: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """The place of each entry among those of its request, for ascending `batch_R`, and the most places."""
    count_B = torch.bincount(batch_R, minlength=batch_size)
    first_B = count_B.cumsum(0) - count_B
    place_R = torch.arange(len(batch_R), device=batch_R.device) - first_B[batch_R]
    return place_R, int(count_B.max()) if batch_size else 0


def _best(batch_R: Tensor, score_R: Tensor, batch_size: int, width: int) -> Tensor:
    """Which children are among the `width` best of their request, bool [R]; of equal ones the first.

    torch.topk does not say which of equal scores it takes, but the lowest score it takes is certain:
    all above that one are in, and the first of those equal to it fill the places that are left.
    """
    place_R, num_places = _places(batch_R, batch_size)
    if num_places <= width:
        return torch.ones_like(batch_R, dtype=torch.bool)
    score_BM = score_R.new_full((batch_size, num_places), -torch.inf)
    score_BM[batch_R, place_R] = score_R
    lowest_B1 = torch.topk(score_BM, width, dim=1, sorted=True).values[:, -1:]
    above_BM = score_BM > lowest_B1
    tied_BM = score_BM == lowest_B1
    num_left_B1 = width - above_BM.sum(dim=1, keepdim=True)
    taken_BM = above_BM | (tied_BM & (tied_BM.cumsum(dim=1) <= num_left_B1))
    return taken_BM[batch_R, place_R]


def _finish(view: TrieView, beams: _Beams, k: int, prefixes: tuple[Tensor, ...]) -> SearchResult:
    """Rows of the leaves, best first, padded to k columns."""
    # stable, so that equal scores stay in order of their codes; padding has -inf and comes last,
    # as it was last before
    order_BK = torch.sort(beams.score_BK, dim=1, descending=True, stable=True).indices
    leaf_BK = beams.node_BK.gather(1, order_BK)
    valid_BK = beams.valid_BK.gather(1, order_BK)
    found_BK = torch.where(valid_BK, view.rows(leaf_BK), -1) if leaf_BK.numel() else leaf_BK
    row_BK = leaf_BK.new_full((len(leaf_BK), k), -1)
    score_BK = beams.score_BK.new_full((len(leaf_BK), k), -torch.inf)
    row_BK[:, : found_BK.shape[1]] = found_BK
    score_BK[:, : found_BK.shape[1]] = beams.score_BK.gather(1, order_BK)
    return SearchResult(row_BK, score_BK, prefixes)
