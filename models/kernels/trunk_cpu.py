"""The softmax trunk over some histories on a CPU, compiled: all events of each, or one more.

For a few positions torch takes longer to call a layer than to compute it. The plain form, with which the
contract of the engines compares this, is `models.networks.softmax_trunk.SoftmaxTrunk`: pre-norm blocks, ALiBi
distances (Press et al., 2022). The last block finishes only the positions that are asked for.

Shapes: B histories, T positions of the longest, X positions of all histories one after the other, Z blocks, D
width, Y three times D, F width of the feed-forward, H heads, E width of a head.
"""

from typing import NamedTuple

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled_fast, compiled_unlocked
from models.kernels.layers_cpu import linear, normalised
from models.kernels.vector_math import exp_of_negative, gelu


class TrunkArrays(NamedTuple):
    """The weights of a trunk, contiguous float32, [inputs, outputs]; what a block's layer norms multiply and
    add is in the weights behind them."""

    project_ZDY: Float32Array
    project_bias_ZY: Float32Array
    seen_ZDD: Float32Array
    seen_bias_ZD: Float32Array
    wide_ZDF: Float32Array
    wide_bias_ZF: Float32Array
    narrow_ZFD: Float32Array
    narrow_bias_ZD: Float32Array
    norm_D: Float32Array
    norm_bias_D: Float32Array
    slope_H: Float32Array


class Cached(NamedTuple):
    """The state after the last event of each history, float32 [B, D]; where there is none it means nothing.

    Keys and values of all its events in every block, float32 [Z, B, H, T, E], zero behind its end.
    """

    state_BD: Float32Array
    key_ZBHTE: Float32Array
    value_ZBHTE: Float32Array


@compiled_unlocked
def prefill_histories(
    x_XD: Float32Array, length_B: Int64Array, first: int, found: Cached, weights: TrunkArrays
) -> None:
    """Writes histories `first` and on into `found` (zeros before), which has room for the longest.

    The `length_B` (int64) positions of each are the next ones of float32 `x_XD`.
    """
    num_blocks, num, width = len(weights.seen_ZDD), len(length_B), x_XD.shape[1]
    own_BD, seen_BD = np.zeros((num, width), np.float32), np.zeros((num, width), np.float32)
    for z in range(num_blocks):
        projected_XY = linear(normalised(x_XD), weights.project_ZDY[z], weights.project_bias_ZY[z])
        seen_XD = np.zeros_like(x_XD)
        begin = 0
        for b in range(num):
            end = begin + length_B[b]
            key_HTE, value_HTE = found.key_ZBHTE[z, first + b], found.value_ZBHTE[z, first + b]
            for x in range(begin, end):
                _keep(projected_XY[x], key_HTE, value_HTE, x - begin)
            # the last block's other positions are read by nobody
            for x in range(begin if z + 1 < num_blocks else max(begin, end - 1), end):
                length = x - begin + 1
                _look(projected_XY[x], key_HTE, value_HTE, length, weights.slope_H, seen_XD[x])
                if length == length_B[b]:
                    own_BD[b], seen_BD[b] = x_XD[x], seen_XD[x]
            begin = end
        if z + 1 < num_blocks:
            x_XD = _finish(x_XD, seen_XD, weights, z)
    found.state_BD[first : first + num] = _normed(_finish(own_BD, seen_BD, weights, num_blocks - 1), weights)


@compiled_unlocked
def extend_histories(
    x_BD: Float32Array, length_B: Int64Array, first: int, found: Cached, weights: TrunkArrays
) -> None:
    """One more event (float32 `x_BD`) of histories `first` and on, of `length_B` (int64) events each.

    `found` has their keys and values, and room for one more; the states are written.
    """
    num = len(x_BD)
    for z in range(len(weights.seen_ZDD)):
        projected_BY = linear(normalised(x_BD), weights.project_ZDY[z], weights.project_bias_ZY[z])
        seen_BD = np.zeros_like(x_BD)
        for b in range(num):
            key_HTE, value_HTE = found.key_ZBHTE[z, first + b], found.value_ZBHTE[z, first + b]
            _keep(projected_BY[b], key_HTE, value_HTE, length_B[b])
            _look(projected_BY[b], key_HTE, value_HTE, length_B[b] + 1, weights.slope_H, seen_BD[b])
        x_BD = _finish(x_BD, seen_BD, weights, z)
    found.state_BD[first : first + num] = _normed(x_BD, weights)


@compiled_fast
def _keep(projected_Y: Float32Array, key_HTE: Float32Array, value_HTE: Float32Array, place: int) -> None:
    """Writes key and value of one position; its query, key and value stand side by side."""
    num_heads, _, head_width = key_HTE.shape
    width = num_heads * head_width
    for head in range(num_heads):
        for e in range(head_width):
            key_HTE[head, place, e] = projected_Y[width + head * head_width + e]
            value_HTE[head, place, e] = projected_Y[2 * width + head * head_width + e]


@compiled_fast
def _look(
    projected_Y: Float32Array,
    key_HTE: Float32Array,
    value_HTE: Float32Array,
    length: int,
    slope_H: Float32Array,
    seen_D: Float32Array,
) -> None:
    """Adds what the last of `length` positions sees of them to `seen_D`."""
    num_heads, _, head_width = key_HTE.shape
    scale = np.float32(1.0 / np.sqrt(head_width))
    weight_HT = np.empty((num_heads, length), np.float32)
    for head in range(num_heads):
        query_E = projected_Y[head * head_width : (head + 1) * head_width]
        highest = np.float32(-np.inf)
        for t in range(length):
            score = np.float32(0.0)
            for e in range(head_width):
                score += query_E[e] * key_HTE[head, t, e]
            score = score * scale - slope_H[head] * np.float32(length - 1 - t)
            weight_HT[head, t] = score
            highest = max(highest, score)
        for t in range(length):
            weight_HT[head, t] -= highest
    exp_of_negative(weight_HT)
    for head in range(num_heads):
        total = np.float32(0.0)
        for t in range(length):
            total += weight_HT[head, t]
        seen_E = seen_D[head * head_width : (head + 1) * head_width]
        for t in range(length):
            share = weight_HT[head, t] / total
            for e in range(head_width):
                seen_E[e] += share * value_HTE[head, t, e]


@compiled_fast
def _finish(x_XD: Float32Array, seen_XD: Float32Array, weights: TrunkArrays, z: int) -> Float32Array:
    """The block's output of positions that saw `seen_XD`."""
    out_XD = linear(seen_XD, weights.seen_ZDD[z], weights.seen_bias_ZD[z])
    out_XD += x_XD
    wide_XF = linear(normalised(out_XD), weights.wide_ZDF[z], weights.wide_bias_ZF[z])
    gelu(wide_XF)
    out_XD += linear(wide_XF, weights.narrow_ZFD[z], weights.narrow_bias_ZD[z])
    return out_XD


@compiled_fast
def _normed(x_BD: Float32Array, weights: TrunkArrays) -> Float32Array:
    out_BD = normalised(x_BD)
    for b in range(len(out_BD)):
        for d in range(out_BD.shape[1]):
            out_BD[b, d] = out_BD[b, d] * weights.norm_D[d] + weights.norm_bias_D[d]
    return out_BD
