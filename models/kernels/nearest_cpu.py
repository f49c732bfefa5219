"""Dot products of a few queries with every row of a table, on a CPU, compiled.

One query reads the whole table, so its time is that of the bytes: with one byte a number it is a quarter of
float32's. What is lost by that is bounded, so the rows that may be among the best are known for certain.

Shapes: B queries, N rows, S rows on the short list, D width.
"""

import numpy as np

from models.arrays import BoolArray, Float32Array, Int8Array, Int64Array
from models.kernels.compiled import compiled_fast


@compiled_fast
def upper_bounds(
    query_BD: Float32Array,
    code_ND: Int8Array,
    scale_N: Float32Array,
    residual_N: Float32Array,
    allowed_N: BoolArray,
) -> Float32Array:
    """An upper bound of each dot product, -inf for a row that is not allowed: float32 [B, N].

    A row is `code * scale` plus a remainder of length `residual`, whose product is at most both lengths
    (Cauchy-Schwarz).
    """
    num_queries, width = query_BD.shape
    bound_BN = np.empty((num_queries, len(code_ND)), np.float32)
    norm_B = np.empty(num_queries, np.float32)
    for b in range(num_queries):
        square = np.float32(0.0)
        for d in range(width):
            square += query_BD[b, d] * query_BD[b, d]
        norm_B[b] = np.sqrt(square)
    for n in range(len(code_ND)):
        if not allowed_N[n]:
            bound_BN[:, n] = -np.inf
            continue
        for b in range(num_queries):
            total = np.float32(0.0)
            for d in range(width):
                total += query_BD[b, d] * np.float32(code_ND[n, d])
            bound_BN[b, n] = total * scale_N[n] + residual_N[n] * norm_B[b]
    return bound_BN


@compiled_fast
def dot_products(query_D: Float32Array, vector_ND: Float32Array, row_S: Int64Array) -> Float32Array:
    """The dot products of one query with some rows of a table: float32 [S]."""
    product_S = np.empty(len(row_S), np.float32)
    for s in range(len(row_S)):
        total = np.float32(0.0)
        for d in range(len(query_D)):
            total += query_D[d] * vector_ND[row_S[s], d]
        product_S[s] = total
    return product_S
