"""The weights of a ranker as its compiled form takes them: end to end in one array, and as they were.

Owns which weights there are, and their order. `models.kernels.ranker_cpu` computes with them, and
`models.networks.compiled_ranker` takes them from a network.

Shapes: D width, G time gaps, H heads, A actions, S sources, I and O inputs and outputs of a layer, W arrays,
X numbers.
"""

from typing import NamedTuple

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled_fast


class Layer(NamedTuple):
    """`weight_OI` and `bias_O` of a linear layer, float32."""

    weight_OI: Float32Array
    bias_O: Float32Array


class Norm(NamedTuple):
    """`weight_D` and `bias_D` of a layer norm, float32."""

    weight_D: Float32Array
    bias_D: Float32Array


class RankerWeights(NamedTuple):
    """All weights and constants of a ranker.

    `scale_5` are the norms' epsilon, the dense logit's divisor, the beam score's floor and divisor, and the
    logit of padding; `weight_2` the weights of dense logit and beam score.
    """

    history_item: Layer
    candidate_item: Layer
    attention_in: Layer
    attention_out: Layer
    ffn_in: Layer
    ffn_out: Layer
    hidden_first: Layer
    hidden_second: Layer
    output: Layer
    history_norm: Norm
    candidate_norm: Norm
    attention_norm: Norm
    ffn_norm: Norm
    last_norm: Norm
    action_AD: Float32Array
    gap_GD: Float32Array
    slope_H: Float32Array
    weight_2: Float32Array
    scale_5: Float32Array


class PackedWeights(NamedTuple):
    """The same end to end, as a call takes them: each array that is passed costs time, however small it is.

    `number_X` float32; the w-th array of `RankerWeights`, in the order of its fields, begins at `begin_W` and
    has `shape_W2` rows and columns (int64), one row where it is a vector. `bit_S` int64, the sources' bits.
    """

    number_X: Float32Array
    begin_W: Int64Array
    shape_W2: Int64Array
    bit_S: Int64Array


@compiled_fast
def _vector(packed: PackedWeights, w: int) -> Float32Array:
    begin = packed.begin_W[w]
    return packed.number_X[begin : begin + packed.shape_W2[w, 0] * packed.shape_W2[w, 1]]


@compiled_fast
def _matrix(packed: PackedWeights, w: int) -> Float32Array:
    return _vector(packed, w).reshape((packed.shape_W2[w, 0], packed.shape_W2[w, 1]))


@compiled_fast
def _layer(packed: PackedWeights, w: int) -> Layer:
    return Layer(_matrix(packed, w), _vector(packed, w + 1))


@compiled_fast
def _norm(packed: PackedWeights, w: int) -> Norm:
    return Norm(_vector(packed, w), _vector(packed, w + 1))


@compiled_fast
def unpacked(packed: PackedWeights) -> RankerWeights:
    """The weights as they were before they were packed, without a copy."""
    return RankerWeights(
        _layer(packed, 0),
        _layer(packed, 2),
        _layer(packed, 4),
        _layer(packed, 6),
        _layer(packed, 8),
        _layer(packed, 10),
        _layer(packed, 12),
        _layer(packed, 14),
        _layer(packed, 16),
        _norm(packed, 18),
        _norm(packed, 20),
        _norm(packed, 22),
        _norm(packed, 24),
        _norm(packed, 26),
        _matrix(packed, 28),
        _matrix(packed, 29),
        _vector(packed, 30),
        _vector(packed, 31),
        _vector(packed, 32),
    )
