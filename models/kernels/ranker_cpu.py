"""The ranker's network for a few requests on a CPU, compiled: one call instead of some sixty of torch.

The plain form is `models.networks.ranker.Ranker` with a `SoftmaxTrunk` of one block; training uses it. Here
candidates are columns: a layer is a product with its weight as torch keeps it, and everything else runs along
a row of candidates. They come in blocks, so that what one layer leaves is still at hand for the next.

Shapes: B requests, T history, M candidates, N catalogue rows, G the generator's width, D width, H heads, E
width of a head, F live features, S sources, A actions, I and O inputs and outputs of a layer, X rows of
several matrices, one below the other.
"""

from typing import NamedTuple

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.blas import use_one_thread
from models.kernels.compiled import compiled_fast, compiled_fast_unlocked
from models.kernels.ranker_weights import Layer, Norm, PackedWeights, RankerWeights, unpacked
from models.kernels.vector_math import exp_of_negative, gelu

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# So many candidates or events are computed together: 16 and 256 took an eighth longer.
_BLOCK = 32

use_one_thread()


class Events(NamedTuple):
    """A history, oldest event first: item rows, actions and times (ms), int64 [T] each."""

    row_T: Int64Array
    action_T: Int64Array
    time_ms_T: Int64Array


@compiled_fast
def linear(layer: Layer, x_IM: Float32Array) -> Float32Array:
    """weight @ x + bias, float32 [O, M]."""
    out_OM = np.empty((len(layer.weight_OI), x_IM.shape[1]), np.float32)
    np.dot(layer.weight_OI, x_IM, out_OM)
    for o in range(out_OM.shape[0]):
        bias = layer.bias_O[o]
        for m in range(out_OM.shape[1]):
            out_OM[o, m] += bias
    return out_OM


@compiled_fast
def normed(norm: Norm, epsilon: np.float32, x_DM: Float32Array) -> Float32Array:
    """The layer norm of each column, float32 [D, M]."""
    width, num_columns = x_DM.shape
    share = _ONE / np.float32(width)
    mean_M, scale_M = np.zeros(num_columns, np.float32), np.zeros(num_columns, np.float32)
    for d in range(width):
        for m in range(num_columns):
            mean_M[m] += x_DM[d, m] * share
    for d in range(width):
        for m in range(num_columns):
            scale_M[m] += (x_DM[d, m] - mean_M[m]) ** 2 * share
    for m in range(num_columns):
        scale_M[m] = _ONE / np.sqrt(scale_M[m] + epsilon)
    out_DM = np.empty_like(x_DM)
    for d in range(width):
        weight, bias = norm.weight_D[d], norm.bias_D[d]
        for m in range(num_columns):
            out_DM[d, m] = (x_DM[d, m] - mean_M[m]) * scale_M[m] * weight + bias
    return out_DM


@compiled_fast
def _projected(layer: Layer, item_NG: Float32Array, row_M: Int64Array) -> Float32Array:
    """The linear layer of some items, those of row 0 in place of no item: float32 [O, M]."""
    item_MG = np.empty((len(row_M), item_NG.shape[1]), np.float32)
    for m in range(len(row_M)):
        item_MG[m] = item_NG[max(row_M[m], 0)]
    return linear(layer, item_MG.T)


@compiled_fast
def _events(
    weights: RankerWeights, item_NG: Float32Array, events: Events, begin: int, end: int
) -> Float32Array:
    """A position for each event from `begin` to `end`, of item, action and the gap before it: float32 [D,
    end - begin]."""
    x_DT = _projected(weights.history_item, item_NG, events.row_T[begin:end])
    for t in range(begin, end):
        # as `gap_bucket` of `models.networks.recommender`: 0 for the first event, then one for each doubling
        bucket = 0
        if t > 0:
            bucket, gap_ms = 1, events.time_ms_T[t] - events.time_ms_T[t - 1]
            while gap_ms > 0 and bucket < len(weights.gap_GD) - 1:
                bucket += 1
                gap_ms >>= 1
        for d in range(x_DT.shape[0]):
            x_DT[d, t - begin] += weights.action_AD[events.action_T[t], d] + weights.gap_GD[bucket, d]
    return normed(weights.history_norm, weights.scale_5[0], x_DT)


@compiled_fast
def _attended(slope_H: Float32Array, own_XM: Float32Array, history_XT: Float32Array) -> Float32Array:
    """What each candidate sees of the history and itself, float32 [D, M].

    `own_XM` are the candidates' queries, keys and values, one below the other, `history_XT` keys and values.
    """
    num_candidates, num_events, num_heads = own_XM.shape[1], history_XT.shape[1], len(slope_H)
    width = len(own_XM) // 3
    head_width = width // num_heads
    scale = _ONE / np.sqrt(np.float32(head_width))
    seen_DM = np.empty((width, num_candidates), np.float32)
    weight_TM = np.empty(
        (num_events + 1, num_candidates), np.float32
    )  # the last row is of the candidate itself
    highest_M, total_M = np.empty(num_candidates, np.float32), np.empty(num_candidates, np.float32)
    for head in range(num_heads):
        begin, end = head * head_width, (head + 1) * head_width
        query_EM = own_XM[begin:end]
        if num_events:
            np.dot(history_XT[begin:end].T, query_EM, weight_TM[:num_events])
        weight_TM[num_events] = _ZERO
        for e in range(head_width):
            for m in range(num_candidates):
                weight_TM[num_events, m] += query_EM[e, m] * own_XM[width + begin + e, m]
        highest_M[:] = -np.inf
        for t in range(num_events + 1):
            bias = slope_H[head] * np.float32(num_events - t)
            for m in range(num_candidates):
                weight_TM[t, m] = weight_TM[t, m] * scale - bias
                highest_M[m] = max(highest_M[m], weight_TM[t, m])
        for t in range(num_events + 1):
            for m in range(num_candidates):
                weight_TM[t, m] -= highest_M[m]
        exp_of_negative(weight_TM)
        total_M[:] = _ZERO
        for t in range(num_events + 1):
            for m in range(num_candidates):
                total_M[m] += weight_TM[t, m]
        seen_EM = seen_DM[begin:end]
        if num_events:
            np.dot(history_XT[width + begin : width + end], weight_TM[:num_events], seen_EM)
        else:
            seen_EM[:] = _ZERO
        for e in range(head_width):
            for m in range(num_candidates):
                own = weight_TM[num_events, m] * own_XM[2 * width + begin + e, m]
                seen_EM[e, m] = (seen_EM[e, m] + own) / total_M[m]
    return seen_DM


@compiled_fast
def _history(weights: RankerWeights, item_NG: Float32Array, events: Events) -> Float32Array:
    """What candidates read of a history: its keys, and below them its values, float32 [2 D, T]."""
    width, num_events = weights.action_AD.shape[1], len(events.row_T)
    to_read = Layer(weights.attention_in.weight_OI[width:], weights.attention_in.bias_O[width:])
    read_XT = np.empty((2 * width, num_events), np.float32)
    for begin in range(0, num_events, _BLOCK):
        end = min(begin + _BLOCK, num_events)
        x_DT = _events(weights, item_NG, events, begin, end)
        read_XT[:, begin:end] = linear(to_read, normed(weights.attention_norm, weights.scale_5[0], x_DT))
    return read_XT


@compiled_fast
def _trunk(weights: RankerWeights, history_XT: Float32Array, candidate_DM: Float32Array) -> Float32Array:
    """`SoftmaxTrunk.forward_candidates` of one block, float32 [D, M]."""
    epsilon = weights.scale_5[0]
    own_XM = linear(weights.attention_in, normed(weights.attention_norm, epsilon, candidate_DM))
    out_DM = linear(weights.attention_out, _attended(weights.slope_H, own_XM, history_XT))
    out_DM += candidate_DM
    ffn_XM = linear(weights.ffn_in, normed(weights.ffn_norm, epsilon, out_DM))
    gelu(ffn_XM)
    out_DM += linear(weights.ffn_out, ffn_XM)
    return normed(weights.last_norm, epsilon, out_DM)


@compiled_fast
def _head_inputs(
    weights: RankerWeights,
    bit_S: Int64Array,
    seen_DM: Float32Array,
    source_M: Int64Array,
    beam_M: Float32Array,
    dense_M: Float32Array,
    feature_MF: Float32Array,
) -> Float32Array:
    """The trunk's output, features, scores and sources of each candidate, float32 [D + F + 3 + S, M]."""
    (width, num_candidates), num_features = seen_DM.shape, feature_MF.shape[1]
    dense_scale, floor, beam_scale = weights.scale_5[1], weights.scale_5[2], weights.scale_5[3]
    after = width + num_features
    input_IM = np.empty((after + 3 + len(bit_S), num_candidates), np.float32)
    input_IM[:width] = seen_DM
    for m in range(num_candidates):
        for f in range(num_features):
            input_IM[width + f, m] = feature_MF[m, f]
        by_beam = not np.isnan(beam_M[m])
        input_IM[after, m] = dense_M[m] / dense_scale
        input_IM[after + 1, m] = max((beam_M[m] - floor) / beam_scale, _ZERO) if by_beam else _ZERO
        input_IM[after + 2, m] = _ONE if by_beam else _ZERO
    for s in range(len(bit_S)):
        for m in range(num_candidates):
            input_IM[after + 3 + s, m] = _ONE if source_M[m] & bit_S[s] else _ZERO
    return input_IM


@compiled_fast
def _rank_block(
    weights: RankerWeights,
    bit_S: Int64Array,
    item_NG: Float32Array,
    history_XT: Float32Array,
    row_M: Int64Array,
    source_M: Int64Array,
    beam_M: Float32Array,
    dense_M: Float32Array,
    feature_MF: Float32Array,
) -> Float32Array:
    """`rank_candidates` for some candidates of one request: float32 [1 + A, M]."""
    candidate_DM = _projected(weights.candidate_item, item_NG, row_M)
    candidate_DM = normed(weights.candidate_norm, weights.scale_5[0], candidate_DM)
    seen_DM = _trunk(weights, history_XT, candidate_DM)
    input_IM = _head_inputs(weights, bit_S, seen_DM, source_M, beam_M, dense_M, feature_MF)
    hidden_XM = linear(weights.hidden_first, input_IM)
    gelu(hidden_XM)
    hidden_XM = linear(weights.hidden_second, hidden_XM)
    gelu(hidden_XM)
    out_OM = linear(weights.output, hidden_XM)
    beam_01_M = input_IM[len(input_IM) - len(bit_S) - 2]
    for m in range(len(row_M)):
        out_OM[0, m] += weights.weight_2[0] * dense_M[m] + weights.weight_2[1] * beam_01_M[m]
        if row_M[m] < 0:
            out_OM[0, m] = weights.scale_5[4]
    return out_OM


@compiled_fast_unlocked
def rank_candidates(
    packed: PackedWeights,
    item_NG: Float32Array,
    event_row_BT: Int64Array,
    action_BT: Int64Array,
    time_ms_BT: Int64Array,
    length_B: Int64Array,
    row_BM: Int64Array,
    source_BM: Int64Array,
    beam_BM: Float32Array,
    dense_BM: Float32Array,
    feature_BMF: Float32Array,
) -> Float32Array:
    """Relevance, and below it the actions' logits, of the candidates of B requests: float32 [B, 1 + A, M].

    Everything is as in `RankingBatch`, the history in three parts.
    """
    weights = unpacked(packed)
    num_requests, num_candidates = row_BM.shape
    out_BOM = np.empty((num_requests, len(weights.output.bias_O), num_candidates), np.float32)
    for b in range(num_requests):
        length = length_B[b]
        events = Events(event_row_BT[b, :length], action_BT[b, :length], time_ms_BT[b, :length])
        history_XT = _history(weights, item_NG, events)
        for begin in range(0, num_candidates, _BLOCK):
            end = min(begin + _BLOCK, num_candidates)
            out_BOM[b, :, begin:end] = _rank_block(
                weights,
                packed.bit_S,
                item_NG,
                history_XT,
                row_BM[b, begin:end],
                source_BM[b, begin:end],
                beam_BM[b, begin:end],
                dense_BM[b, begin:end],
                feature_BMF[b, begin:end],
            )
    return out_BOM
