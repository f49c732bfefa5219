"""The dense head of a few states on a CPU, compiled: a projection, and its dot products with some rows.

Shapes: B states, M rows of each, N rows, D width.
"""

from typing import NamedTuple

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled_fast
from models.kernels.layers_cpu import linear

_SHORTEST = np.float32(1e-12)  # that of torch.nn.functional.normalize


class DenseHead(NamedTuple):
    """The projection of states, contiguous float32, [inputs, outputs], and the length of a query."""

    weight_DD: Float32Array
    bias_D: Float32Array
    length: float


@compiled_fast
def dense_queries(state_BD: Float32Array, head: DenseHead) -> Float32Array:
    """Projected states of one length, float32 [B, D]: a dot product with an item's vector is its logit."""
    query_BD = linear(state_BD, head.weight_DD, head.bias_D)
    for b in range(len(query_BD)):
        square = np.float32(0.0)
        for d in range(query_BD.shape[1]):
            square += query_BD[b, d] * query_BD[b, d]
        scale = np.float32(head.length) / max(np.sqrt(square), _SHORTEST)
        for d in range(query_BD.shape[1]):
            query_BD[b, d] *= scale
    return query_BD


@compiled_fast
def dense_logits(
    state_BD: Float32Array, head: DenseHead, vector_ND: Float32Array, row_BM: Int64Array
) -> Float32Array:
    """Dense logits, float32 [B, M], of int64 rows for each state."""
    query_BD = dense_queries(state_BD, head)
    logit_BM = np.empty(row_BM.shape, np.float32)
    for b in range(row_BM.shape[0]):
        for m in range(row_BM.shape[1]):
            vector_D = vector_ND[row_BM[b, m]]
            total = np.float32(0.0)
            for d in range(len(vector_D)):
                total += query_BD[b, d] * vector_D[d]
            logit_BM[b, m] = total
    return logit_BM
