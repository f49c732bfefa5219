"""Beam search constrained by the trie: k distinct, available items for each request of a batch.

A step scores the children that exist and keeps the best of all of them; `models/kernels/beam_step_cpu.py`
does that. It knows the trie and a callable that gives logits, not the network behind it.
`models/decoding/beam_search_reference.py` says the same slowly and plainly, and the tests compare the two.

Three invariants carry the rest:
- A prefix divides its probability among the children that lead to an available item: the scores of all
  items of a catalogue are a distribution, and a prefix with one such child needs no network at all.
- The beams of a request stay in ascending order of their codes. Children come out in the same order,
  and ties go to the first.
- The children of a request are scored one prefix at a time, in float32, so that its answer does not
  depend on the rest of its batch.

Shape letters: B batch, K beams, V codebook size, C codes of an item, l codes so far, Q prefixes that
branch, X excluded items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array, Int64Array
from models.catalogue.trie import Trie
from models.kernels.beam_step_cpu import Hidden, best_children, branching_beams, count_hidden

CodeLogits = Callable[[Tensor, Tensor], Tensor]
"""`code_logits(prefix_Ql, request_Q)`: logits [Q, V] of the code after each prefix of its request."""

_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Beams:
    """At most K prefixes of each request; padding has the score -inf, and comes last.

    `prefix_BKl` and `node_BK` int64, `score_BK` float32 log-probabilities.
    """

    prefix_BKl: Int64Array
    node_BK: Int64Array
    score_BK: Float32Array


@dataclass(frozen=True)
class SearchResult:
    """The best items of B requests, best first; ties are in ascending order of their codes.

    `row_BK` int64, -1 where fewer than k were found; `score_BK` float32 log-probabilities, -inf there.
    `beams[l - 1]` are those kept after l codes.
    """

    row_BK: Tensor
    score_BK: Tensor
    beams: tuple[Beams, ...]

    @property
    def prefixes(self) -> tuple[Tensor, ...]:
        """Int64 [B, K_l, l] for each l: the beams kept after l codes, in ascending order, -1 padded.

        The share of requests whose true prefix is among them is the hierarchical recall at level l.
        """
        return tuple(
            torch.from_numpy(np.where(one.score_BK[:, :, None] == -np.inf, -1, one.prefix_BKl))
            for one in self.beams
        )


def beam_search(
    code_logits: CodeLogits,
    trie: Trie,
    *,
    batch_size: int,
    k: int,
    beam: int,
    exclude: Sequence[Int64Array] | None = None,
) -> SearchResult:
    """The k best items of each request, or all that there are when they are fewer.

    `code_logits` takes int64 prefixes [Q, l] (l from 0 to C - 1) and the requests [Q] they are of, and gives
    floating logits [Q, V]; it is asked only about prefixes with more than one open child. `beam` prefixes are
    kept after every code but the last. `exclude` holds int64 rows for each request that must not be returned;
    -1 and repeats are ignored. A subtree with nothing left to return takes no beam; what is excluded keeps
    its share of the probability.

    With a beam as large as the catalogue the result is exact. A request's result does not depend on the rest
    of its batch, as far as `code_logits` does not. Raises ValueError for a k or beam below 1, or where
    `exclude` has not one entry for each request.
    """
    if k < 1 or beam < 1:
        raise ValueError("k and beam must be at least 1")
    if exclude is not None and len(exclude) != batch_size:
        raise ValueError(f"{len(exclude)} lists of excluded rows for a batch of {batch_size}")
    hidden = _hidden(trie, exclude or ())
    beams = Beams(
        prefix_BKl=np.zeros((batch_size, 1, 0), np.int64),
        node_BK=np.zeros((batch_size, 1), np.int64),
        score_BK=np.zeros((batch_size, 1), np.float32),
    )
    kept = []
    for depth in range(trie.num_codes):
        width = k if depth == trie.num_codes - 1 else beam
        beams = _step(code_logits, trie, depth, beams, hidden[depth], width)
        kept.append(beams)
    return _finish(trie, k, tuple(kept))


def _step(code_logits: CodeLogits, trie: Trie, depth: int, beams: Beams, hidden: Hidden, width: int) -> Beams:
    """The best `width` children of each request's beams."""
    level, size = trie.levels[depth], trie.codebook_size
    batch_size, num_beams = beams.node_BK.shape
    beam_Q, place_BK = branching_beams(level, size, beams.node_BK, beams.score_BK)
    logits_QV = np.zeros((0, size), np.float32)
    if len(beam_Q):
        prefix_Ql = beams.prefix_BKl.reshape(batch_size * num_beams, depth)[beam_Q]
        logits = code_logits(torch.from_numpy(prefix_Ql), torch.from_numpy(beam_Q // num_beams))
        logits_QV = logits.float().numpy()
    beam_BK, code_BK, node_BK, score_BK = best_children(
        level, hidden, size, beams.node_BK, beams.score_BK, place_BK, logits_QV, width
    )
    used = int((score_BK > -np.inf).sum(1).max(initial=0))
    if used < width:
        beam_BK, code_BK = beam_BK[:, :used], code_BK[:, :used]
        node_BK, score_BK = np.ascontiguousarray(node_BK[:, :used]), np.ascontiguousarray(score_BK[:, :used])
    prefix_BKl = np.empty((*beam_BK.shape, depth + 1), np.int64)
    prefix_BKl[:, :, :depth] = beams.prefix_BKl[np.arange(batch_size)[:, None], beam_BK]
    prefix_BKl[:, :, depth] = code_BK
    return Beams(prefix_BKl=prefix_BKl, node_BK=node_BK, score_BK=score_BK)


def _hidden(trie: Trie, exclude: Sequence[Int64Array]) -> list[Hidden]:
    """For each level how many available items each request excludes below each node."""
    if not any(map(len, exclude)):
        return [Hidden(_NOTHING, _NOTHING, 0)] * trie.num_codes
    request_X = np.repeat(np.arange(len(exclude)), [len(rows) for rows in exclude])
    row_X = np.concatenate([np.asarray(rows, np.int64) for rows in exclude])
    num_nodes_C = np.array([len(level.live_N) for level in trie.levels], np.int64)
    key_CX, count_CX, used_C = count_hidden(request_X, row_X, trie.available_N, trie.node_NC, num_nodes_C)
    return [
        Hidden(key_X[:used], count_X[:used], num_nodes)
        for key_X, count_X, used, num_nodes in zip(
            key_CX, count_CX, used_C.tolist(), num_nodes_C.tolist(), strict=True
        )
    ]


def _finish(trie: Trie, k: int, beams: tuple[Beams, ...]) -> SearchResult:
    """Rows of the leaves, best first, padded to k columns."""
    leaves = beams[-1]
    # stable, so that equal scores stay in order of their codes, and padding stays last
    order_BK = np.argsort(-leaves.score_BK, axis=1, kind="stable")
    request_B1 = np.arange(len(order_BK))[:, None]
    leaf_BK, score_BK = leaves.node_BK[request_B1, order_BK], leaves.score_BK[request_B1, order_BK]
    row_Bk = np.full((len(leaf_BK), k), -1, np.int64)
    padded_Bk = np.full((len(leaf_BK), k), -np.inf, np.float32)
    if leaf_BK.size:
        row_Bk[:, : leaf_BK.shape[1]] = np.where(score_BK > -np.inf, trie.row_N[leaf_BK], -1)
        padded_Bk[:, : leaf_BK.shape[1]] = score_BK
    return SearchResult(torch.from_numpy(row_Bk), torch.from_numpy(padded_Bk), beams)
