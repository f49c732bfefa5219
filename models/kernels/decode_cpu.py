"""The whole beam search of some requests on a CPU, compiled: the depth decoder and the trie in one call.

A search is some hundred small steps. Called one by one out of Python they cost more than they compute, and
each takes the interpreter's lock; here the lock is let go once. A step over the trie is that of
`models/kernels/beam_step_cpu.py`, and the network is `models.networks.depth_decoder.DepthDecoder`, which the
contract of the engines compares it with. Requests are searched one after the other: an answer does not depend
on its batch, to the last bit.

Shapes: B requests, K beams, k results, Q prefixes that branch, C codes of an item, l codes so far, V codebook
size, D width, E two times D, F width of the feed-forward, X excluded rows, N items or nodes.
"""

from typing import NamedTuple

import numpy as np

from models.arrays import BoolArray, Float32Array, Int32Array, Int64Array
from models.kernels.attend_cpu import attend_prefix
from models.kernels.beam_step_cpu import (
    Hidden,
    best_children,
    branching_beams,
    count_hidden,
    write_open_children,
)
from models.kernels.compiled import compiled, compiled_fast, compiled_unlocked
from models.kernels.layers_cpu import linear, normalised
from models.kernels.level import Level
from models.kernels.vector_math import gelu

MAX_CODES = 9  # of an item: as many as `models.networks.config.ModelConfig` allows


class DecoderArrays(NamedTuple):
    """The weights of a depth decoder, contiguous float32, [inputs, outputs] but for `logit_CVD`.

    What a layer norm multiplies and adds is in the weights behind it, the first level's embedding in
    `start_bias_D`. The tables hold what the block reads of each code at each level but the last.
    """

    start_DD: Float32Array
    start_bias_D: Float32Array
    key_value_DE: Float32Array
    key_value_bias_E: Float32Array
    seen_DD: Float32Array
    seen_bias_D: Float32Array
    wide_DF: Float32Array
    wide_bias_F: Float32Array
    narrow_FD: Float32Array
    narrow_bias_D: Float32Array
    logit_CVD: Float32Array
    logit_bias_CV: Float32Array
    token_lVD: Float32Array
    query_lVD: Float32Array
    key_lVD: Float32Array
    value_lVD: Float32Array


class TrieArrays(NamedTuple):
    """A trie as a search reads it: edges into each level, row of each leaf, nodes of each row, what is
    available.

    The first `num_codes` of the levels, always MAX_CODES: one compiled search serves tries of all depths.
    """

    num_codes: int
    levels: tuple[Level, ...]
    row_N: Int32Array
    node_NC: Int32Array
    available_N: BoolArray


class Found(NamedTuple):
    """The beams that B searches kept after each code, in ascending order, and their leaves, best first.

    `prefix_CBKC` and `node_CBK` int64, `score_CBK` float32, -inf in the padding, which comes last; at most
    `used_C` (int64) beams of a request are none. `row_Bk` int64, -1 where fewer were found, and `leaf_Bk`
    float32, -inf there.
    """

    prefix_CBKC: Int64Array
    node_CBK: Int64Array
    score_CBK: Float32Array
    used_C: Int64Array
    row_Bk: Int64Array
    leaf_Bk: Float32Array


@compiled_unlocked
def decode(
    state_BD: Float32Array,
    weights: DecoderArrays,
    num_heads: int,
    trie: TrieArrays,
    k: int,
    beam: int,
    excluded_X: Int64Array,
    end_B: Int64Array,
) -> Found:
    """Searches the best `k` available items for each float32 state, with `beam` prefixes after every code but
    the last.

    A request must not get its part of `excluded_X` (int64 rows; -1 and repeats are ignored): those up to its
    `end_B`, from the end of the request before it.
    """
    num_codes, most = trie.num_codes, max(k, beam)
    shape = (num_codes, len(state_BD), most)
    found = Found(
        np.zeros((*shape, num_codes), np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, -np.inf, np.float32),
        np.zeros(num_codes, np.int64),
        np.full((len(state_BD), k), -1, np.int64),
        np.full((len(state_BD), k), -np.inf, np.float32),
    )
    begin = 0
    for b in range(len(state_BD)):
        _search(found, b, state_BD[b : b + 1], weights, num_heads, trie, beam, excluded_X[begin : end_B[b]])
        begin = end_B[b]
    return found


@compiled
def _search(
    found: Found,
    b: int,
    state_1D: Float32Array,
    weights: DecoderArrays,
    num_heads: int,
    trie: TrieArrays,
    beam: int,
    excluded_X: Int64Array,
) -> None:
    """Writes what one request keeps after each code, and its leaves in order."""
    num_codes, codebook_size, k = trie.num_codes, weights.logit_bias_CV.shape[1], found.row_Bk.shape[1]
    first = _first_token(state_1D, weights)
    key_CX, count_CX, used_C, num_nodes_C = _hidden_nodes(trie, excluded_X)
    prefix_Kl = np.zeros((1, 0), np.int64)
    node_1K, score_1K = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
    for depth in range(num_codes):
        level, width = trie.levels[depth], k if depth == num_codes - 1 else beam
        excluded = Hidden(
            key_CX[depth, : used_C[depth]], count_CX[depth, : used_C[depth]], num_nodes_C[depth]
        )
        beam_Q, place_1K = branching_beams(level, codebook_size, node_1K, score_1K)
        hidden_QD = _hidden(prefix_Kl[beam_Q], first, weights, num_heads)
        logits_QV = _open_logits(
            level, node_1K[0, beam_Q], hidden_QD, weights.logit_CVD[depth], weights.logit_bias_CV[depth]
        )
        beam_1W, code_1W, node_1W, score_1W = best_children(
            level, excluded, codebook_size, node_1K, score_1K, place_1K, logits_QV, width
        )
        used = int((score_1W > -np.inf).sum())
        longer_Kl = np.empty((used, depth + 1), np.int64)
        longer_Kl[:, :depth] = prefix_Kl[beam_1W[0, :used]]
        longer_Kl[:, depth] = code_1W[0, :used]
        prefix_Kl, node_1K, score_1K = longer_Kl, node_1W[:, :used].copy(), score_1W[:, :used].copy()
        found.prefix_CBKC[depth, b, :used, : depth + 1] = prefix_Kl
        found.node_CBK[depth, b, :used] = node_1K[0]
        found.score_CBK[depth, b, :used] = score_1K[0]
        found.used_C[depth] = max(found.used_C[depth], used)
    # stable, so that equal scores stay in order of their codes
    order_k = np.argsort(-score_1K[0], kind="mergesort")
    for n in range(len(order_k)):
        found.row_Bk[b, n] = trie.row_N[node_1K[0, order_k[n]]]
        found.leaf_Bk[b, n] = score_1K[0, order_k[n]]


@compiled
def _hidden_nodes(
    trie: TrieArrays, excluded_X: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """The parts of `Hidden` for each level, of one request."""
    num_nodes_C = np.empty(trie.num_codes, np.int64)
    for depth in range(trie.num_codes):
        num_nodes_C[depth] = len(trie.levels[depth].live_N)
    request_X = np.zeros(len(excluded_X), np.int64)
    key_CX, count_CX, used_C = count_hidden(
        request_X, excluded_X, trie.available_N, trie.node_NC, num_nodes_C
    )
    return key_CX, count_CX, used_C, num_nodes_C


@compiled
def _first_token(
    state_1D: Float32Array, weights: DecoderArrays
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """What the block reads of a state: token, key and value, each [1, D].

    A token that sees itself alone attends with weight 1: its query is never needed.
    """
    token_1D = linear(state_1D, weights.start_DD, weights.start_bias_D)
    key_value_1E = linear(normalised(token_1D), weights.key_value_DE, weights.key_value_bias_E)
    width = state_1D.shape[1]
    return token_1D, key_value_1E[:, :width].copy(), key_value_1E[:, width:].copy()


@compiled
def _hidden(
    prefix_Ql: Int64Array,
    first: tuple[Float32Array, Float32Array, Float32Array],
    weights: DecoderArrays,
    num_heads: int,
) -> Float32Array:
    """What the last token of each prefix becomes, normed, [Q, D]; the first token is `_first_token`'s."""
    depth = prefix_Ql.shape[1]
    start_1D, key_1D, value_1D = first
    token_QD = np.empty((len(prefix_Ql), start_1D.shape[1]), np.float32)
    if depth == 0:
        token_QD[:] = start_1D
        seen_QD = value_1D[: len(prefix_Ql)]
    else:
        for q in range(len(prefix_Ql)):
            token_QD[q] = weights.token_lVD[depth - 1, prefix_Ql[q, depth - 1]]
        seen_QD = attend_prefix(
            prefix_Ql,
            np.zeros(len(prefix_Ql), np.int64),
            key_1D,
            value_1D,
            weights.query_lVD,
            weights.key_lVD,
            weights.value_lVD,
            num_heads,
        )
    token_QD += linear(seen_QD, weights.seen_DD, weights.seen_bias_D)
    wide_QF = linear(normalised(token_QD), weights.wide_DF, weights.wide_bias_F)
    gelu(wide_QF)
    token_QD += linear(wide_QF, weights.narrow_FD, weights.narrow_bias_D)
    return normalised(token_QD)


@compiled_fast
def _open_logits(
    level: Level,
    node_Q: Int64Array,
    hidden_QD: Float32Array,
    logit_VD: Float32Array,
    bias_V: Float32Array,
) -> Float32Array:
    """Logits [Q, V] of the open children of each node; of the other codes they mean nothing.

    Most nodes have few of all the codes below them: theirs are the only weights to read.
    """
    size, width = logit_VD.shape
    logits_QV = np.empty((len(node_Q), size), np.float32)
    code_V, child_V = np.empty(size, np.int64), np.empty(size, np.int64)
    for q in range(len(node_Q)):
        for n in range(write_open_children(level, node_Q[q], size, code_V, child_V)):
            code = code_V[n]
            total = np.float32(0.0)
            for d in range(width):
                total += hidden_QD[q, d] * logit_VD[code, d]
            logits_QV[q, code] = total + bias_V[code]
    return logits_QV
