"""One step of a beam search on a CPU, compiled: open children, log-softmax, exclusion and the best of them.

The counterpart of the Triton kernel (`models/kernels/beam_step_triton.py`), on the trie as it is, its tail
of new items included. In vectorised torch the same step is about a hundred calls, and for one request
the calls cost more than the work. Numba compiles it once for a machine and keeps the result on disk.

Shapes: B requests, K beams, V codebook size, W beams kept, Q prefixes with logits, X excluded nodes,
P parents, N edges or nodes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled
from models.kernels.heap_cpu import put_best
from models.kernels.level import Level


class Hidden(NamedTuple):
    """What requests must not get: `count_X` available items below the node of `key_X`, ascending int64:
    request * `num_nodes` + child node."""

    key_X: Int64Array
    count_X: Int64Array
    num_nodes: int


@compiled
def log_softmax_inplace(score_n: Float32Array) -> None:
    """Log-softmax of the children of one prefix, float32, in their order."""
    highest = score_n[0]
    for score in score_n:
        highest = max(highest, score)
    total = np.float32(0.0)
    for score in score_n:
        total += np.exp(score - highest)
    shift = highest + np.log(total)
    for n in range(len(score_n)):
        score_n[n] -= shift


@compiled
def write_open_children(
    level: Level, node: int, codebook_size: int, code_V: Int64Array, child_V: Int64Array
) -> int:
    """Writes the codes and nodes of the children with something available, by code; returns how many."""
    at, end = 0, 0
    if node < len(level.offset_P) - 1:
        at, end = int(level.offset_P[node]), int(level.offset_P[node + 1])
    tail, tail_end = 0, 0
    if len(level.tail_key_N) > 0:
        tail = int(np.searchsorted(level.tail_key_N, node * codebook_size))
        tail_end = int(np.searchsorted(level.tail_key_N, (node + 1) * codebook_size))
    found = 0
    while at < end or tail < tail_end:
        tail_code = level.tail_key_N[tail] - node * codebook_size if tail < tail_end else codebook_size
        if at < end and level.code_N[at] < tail_code:
            code_V[found], child_V[found] = level.code_N[at], level.child_N[at]
            at += 1
        else:
            code_V[found], child_V[found] = tail_code, level.tail_child_N[tail]
            tail += 1
        found += level.live_N[child_V[found]] > 0
    return found


@compiled
def open_children(level: Level, node: int, codebook_size: int) -> tuple[Int64Array, Int64Array]:
    """Codes and nodes (int64) of the children of one node that lead to an available item, by code."""
    code_V = np.empty(codebook_size, np.int64)
    child_V = np.empty(codebook_size, np.int64)
    found = write_open_children(level, node, codebook_size, code_V, child_V)
    return code_V[:found], child_V[:found]


@compiled
def branching_beams(
    level: Level, codebook_size: int, node_BK: Int64Array, score_BK: Float32Array
) -> tuple[Int64Array, Int64Array]:
    """Which beams have a choice: flat int64 positions [Q] of those with more than one open child, and for
    every beam its place among them, or -1: int64 [B, K]. A beam with the score -inf is none."""
    code_V = np.empty(codebook_size, np.int64)
    child_V = np.empty(codebook_size, np.int64)
    place_BK = np.full(node_BK.shape, -1, np.int64)
    beam_Q = np.empty(node_BK.size, np.int64)
    found = 0
    for b in range(node_BK.shape[0]):
        for k in range(node_BK.shape[1]):
            if score_BK[b, k] == -np.inf:
                continue
            if write_open_children(level, node_BK[b, k], codebook_size, code_V, child_V) > 1:
                place_BK[b, k] = found
                beam_Q[found] = b * node_BK.shape[1] + k
                found += 1
    return beam_Q[:found], place_BK


@compiled
def count_hidden(
    request_X: Int64Array,
    row_X: Int64Array,
    available_N: npt.NDArray[np.bool_],
    node_NC: npt.NDArray[np.int32],
    num_nodes_C: Int64Array,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """For each level the keys and counts of `Hidden`, int64 [C, X], and how many there are, int64 [C].

    Rows that are not available are hidden anyway, and -1 is no row; a row that is named twice counts once.
    """
    num_items, num_levels = len(available_N), len(num_nodes_C)
    pair_X = np.empty(len(row_X), np.int64)
    found = 0
    for x in range(len(row_X)):
        if row_X[x] >= 0 and available_N[row_X[x]]:
            pair_X[found] = request_X[x] * num_items + row_X[x]
            found += 1
    pair_X = np.unique(pair_X[:found])
    key_CX = np.empty((num_levels, len(pair_X)), np.int64)
    count_CX = np.zeros((num_levels, len(pair_X)), np.int64)
    used_C = np.zeros(num_levels, np.int64)
    for level in range(num_levels):
        key_X = np.empty(len(pair_X), np.int64)
        for x in range(len(pair_X)):
            request, row = pair_X[x] // num_items, pair_X[x] % num_items
            key_X[x] = request * num_nodes_C[level] + node_NC[row, level]
        key_X.sort()
        used = 0
        for x in range(len(key_X)):
            if x == 0 or key_X[x] != key_X[x - 1]:
                key_CX[level, used] = key_X[x]
                used += 1
            count_CX[level, used - 1] += 1
        used_C[level] = used
    return key_CX, count_CX, used_C


@compiled
def _is_hidden(hidden: Hidden, request: int, child: int, live: int) -> bool:
    key = request * hidden.num_nodes + child
    at = np.searchsorted(hidden.key_X, key)
    return bool(at < len(hidden.key_X) and hidden.key_X[at] == key and hidden.count_X[at] >= live)


@compiled
def best_children(
    level: Level,
    hidden: Hidden,
    codebook_size: int,
    node_BK: Int64Array,
    score_BK: Float32Array,
    place_BK: Int64Array,
    logits_QV: Float32Array,
    width: int,
) -> tuple[Int64Array, Int64Array, Int64Array, Float32Array]:
    """The `width` best children of each request's beams, in order of beam and code; of equal ones the first.

    `place_BK` and `logits_QV` are those of `branching_beams`. Returns beam, code, node (int64) and score
    (float32, -inf in the padding, which comes last), [B, W].
    """
    num_requests, num_beams = node_BK.shape
    beam_BW = np.zeros((num_requests, width), np.int64)
    code_BW = np.zeros((num_requests, width), np.int64)
    child_BW = np.zeros((num_requests, width), np.int64)
    out_BW = np.full((num_requests, width), -np.inf, np.float32)
    code_V = np.empty(codebook_size, np.int64)
    child_V = np.empty(codebook_size, np.int64)
    score_V = np.empty(codebook_size, np.float32)
    heap_score_W = np.empty(width, np.float32)
    heap_place_W = np.empty(width, np.int64)
    for b in range(num_requests):
        size = 0
        for k in range(num_beams):
            if score_BK[b, k] == -np.inf:
                continue
            found = write_open_children(level, node_BK[b, k], codebook_size, code_V, child_V)
            score_V[:found] = np.float32(0.0)
            if place_BK[b, k] >= 0:
                for n in range(found):
                    score_V[n] = logits_QV[place_BK[b, k], code_V[n]]
                log_softmax_inplace(score_V[:found])
            for n in range(found):
                score = score_BK[b, k] + score_V[n]
                if size == width and not score > heap_score_W[0]:
                    continue
                if len(hidden.key_X) > 0 and _is_hidden(hidden, b, child_V[n], level.live_N[child_V[n]]):
                    continue
                place = k * codebook_size + code_V[n]
                size = put_best(heap_score_W, heap_place_W, size, score, place)
        order = np.argsort(heap_place_W[:size])
        for w in range(size):
            place = heap_place_W[order[w]]
            k, code = place // codebook_size, place % codebook_size
            beam_BW[b, w], code_BW[b, w] = k, code
            child_BW[b, w] = _child(level, node_BK[b, k], code, codebook_size)
            out_BW[b, w] = heap_score_W[order[w]]
    return beam_BW, code_BW, child_BW, out_BW


@compiled
def _child(level: Level, node: int, code: int, codebook_size: int) -> int:
    """The child of an edge that is there."""
    if len(level.tail_key_N) > 0:
        key = node * codebook_size + code
        at = np.searchsorted(level.tail_key_N, key)
        if at < len(level.tail_key_N) and level.tail_key_N[at] == key:
            return int(level.tail_child_N[at])
    begin, end = level.offset_P[node], level.offset_P[node + 1]
    return int(level.child_N[begin + np.searchsorted(level.code_N[begin:end], code)])


@compiled
def mark_valid_codes(
    level: Level, codebook_size: int, node_X: Int64Array, code_X: Int64Array, valid_XV: npt.NDArray[np.bool_]
) -> None:
    """Sets which codes may follow each node, in `valid_XV` (bool): those of open children, and `code_X`
    (int64) in any case."""
    code_V = np.empty(codebook_size, np.int64)
    child_V = np.empty(codebook_size, np.int64)
    for x in range(len(node_X)):
        for n in range(write_open_children(level, node_X[x], codebook_size, code_V, child_V)):
            valid_XV[x, code_V[n]] = True
        valid_XV[x, code_X[x]] = True
