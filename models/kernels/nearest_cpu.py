"""The rows of a table with the highest dot products for a few queries, exact, on a CPU, compiled.

One query reads the whole table, so its time is that of the bytes: with one byte a number it is a quarter of
float32's, and vector units multiply twice as many at once. What is lost by that is bounded, so only rows
that may be among the best are multiplied in float32.

Shapes: B queries, N rows, D width, K neighbours, X excluded rows.
"""

import numpy as np

from models.arrays import BoolArray, Float32Array, Int8Array, Int16Array, Int64Array
from models.kernels.compiled import compiled_fast, compiled_fast_unlocked
from models.kernels.heap_cpu import put_best

MAX_CODE = 127  # of a number of the table
_MAX_QUERY_CODE = 32_767
# Rows that all queries look at before the next ones come: they stay in the cache.
_BLOCK_ROWS = 2_048


@compiled_fast_unlocked
def nearest_rows(
    query_BD: Float32Array,
    code_ND: Int8Array,
    scale_N: Float32Array,
    residual_N: Float32Array,
    vector_ND: Float32Array,
    allowed_N: BoolArray,
    excluded_X: Int64Array,
    end_B: Int64Array,
    k: int,
) -> tuple[Int64Array, Float32Array, Int64Array]:
    """For each query the `k` rows with the highest products and those, best first, ties by row.

    Row n of `vector_ND` is `code_ND[n] * scale_N[n]` and a remainder no longer than `residual_N[n]`. Rows
    that `allowed_N` forbids or a query excludes are never found: its part of `excluded_X` (what is no row is
    ignored) ends at its `end_B`. Int64 [B, K], float32 [B, K] and, int64 [B], how many were found.
    """
    num_queries, k = len(query_BD), min(k, len(code_ND))
    row_BK = np.zeros((num_queries, k), np.int64)
    product_BK = np.full((num_queries, k), -np.inf, np.float32)
    found_B = np.zeros(num_queries, np.int64)
    bound_BN = _upper_bounds(query_BD, code_ND, scale_N, residual_N, allowed_N)
    begin = 0
    for b in range(num_queries):
        for row in excluded_X[begin : end_B[b]]:
            if 0 <= row < len(code_ND):
                bound_BN[b, row] = -np.inf
        begin = end_B[b]
        if k > 0:
            found_B[b] = _best(query_BD[b], bound_BN[b], vector_ND, row_BK[b], product_BK[b])
    return row_BK, product_BK, found_B


@compiled_fast
def _best(
    query_D: Float32Array,
    bound_N: Float32Array,
    vector_ND: Float32Array,
    row_K: Int64Array,
    product_K: Float32Array,
) -> int:
    """Writes the best rows of one query, and returns how many there are; uses up the bounds.

    Those with the highest bounds come first, so that few of the others are still in doubt.
    """
    first_K, bound_K, num_first = np.empty_like(row_K), np.empty_like(product_K), 0
    lowest = np.float32(-np.inf)
    for n in range(len(bound_N)):
        if bound_N[n] > lowest:
            num_first = put_best(bound_K, first_K, num_first, bound_N[n], n)
            if num_first == len(first_K):
                lowest = bound_K[0]
    found = 0
    for n in first_K[:num_first]:
        found = put_best(product_K, row_K, found, _product(query_D, vector_ND[n]), n)
        bound_N[n] = -np.inf
    if found == len(row_K):
        for n in range(len(bound_N)):
            # a row that equals the last of these may come before it
            if bound_N[n] >= product_K[0]:
                product = _product(query_D, vector_ND[n])
                if product > product_K[0] or (product == product_K[0] and n < row_K[0]):
                    put_best(product_K, row_K, found, product, n)
    by_row = np.argsort(row_K[:found])
    order = by_row[np.argsort(-product_K[by_row], kind="mergesort")]
    product_K[:found], row_K[:found] = product_K[order], row_K[order]
    return found


@compiled_fast
def _upper_bounds(
    query_BD: Float32Array,
    code_ND: Int8Array,
    scale_N: Float32Array,
    residual_N: Float32Array,
    allowed_N: BoolArray,
) -> Float32Array:
    """An upper bound of each product, -inf for a row that is not allowed: float32 [B, N].

    The product of a row's remainder is at most both lengths (Cauchy-Schwarz).
    """
    bound_BN = np.empty((len(query_BD), len(code_ND)), np.float32)
    query_code_BD, slope_B, length_B, error_B = _coded(query_BD)
    for first in range(0, len(code_ND), _BLOCK_ROWS):
        rows = slice(first, min(first + _BLOCK_ROWS, len(code_ND)))
        for b in range(len(query_BD)):
            bound_n = bound_BN[b, rows]
            _products_of_codes(query_code_BD[b], code_ND[rows], bound_n)
            for n in range(len(bound_n)):
                bound = (bound_n[n] * slope_B[b] + error_B[b]) * scale_N[first + n]
                bound += residual_N[first + n] * length_B[b]
                bound_n[n] = bound if allowed_N[first + n] else -np.inf
    return bound_BN


@compiled_fast
def _products_of_codes(query_D: Int16Array, code_ND: Int8Array, product_N: Float32Array) -> None:
    """Sums in int32, since vector units multiply and add int16 in pairs; exact unless they overflow."""
    for n in range(len(code_ND)):
        total = np.int32(0)
        for d in range(len(query_D)):
            # what is added must be cut to int32 again, or the sum would be one of int64
            total = np.int32(total + np.int32(query_D[d]) * np.int32(code_ND[n, d]))
        product_N[n] = total


@compiled_fast
def _product(query_D: Float32Array, vector_D: Float32Array) -> np.float32:
    total = np.float32(0.0)
    for d in range(len(query_D)):
        total += query_D[d] * vector_D[d]
    return total


@compiled_fast
def _coded(query_BD: Float32Array) -> tuple[Int16Array, Float32Array, Float32Array, Float32Array]:
    """Queries as int16 codes times a slope, with which no sum of products leaves int32.

    Codes [B, D], slope and length of each query, and at most how much of its product with a row is lost, for
    a row of scale 1: float32 [B].
    """
    num_queries, width = query_BD.shape
    highest_code = min(_MAX_QUERY_CODE, (2**31 - 1) // (MAX_CODE * max(1, width)))
    longest_row = np.float32(MAX_CODE * np.sqrt(width))
    code_BD = np.zeros((num_queries, width), np.int16)
    slope_B, length_B = np.zeros(num_queries, np.float32), np.zeros(num_queries, np.float32)
    error_B = np.zeros(num_queries, np.float32)
    for b in range(num_queries):
        highest = np.float32(0.0)
        for d in range(width):
            highest = max(highest, abs(query_BD[b, d]))
        if highest == 0:
            continue
        slope = np.float32(highest / np.float32(highest_code))
        square, lost = 0.0, 0.0
        for d in range(width):
            code_BD[b, d] = np.int16(np.rint(query_BD[b, d] / slope))
            rest = query_BD[b, d] - code_BD[b, d] * slope
            square += query_BD[b, d] * query_BD[b, d]
            lost += rest * rest
        slope_B[b], length_B[b], error_B[b] = slope, np.sqrt(square), np.sqrt(lost) * longest_row
    return code_BD, slope_B, length_B, error_B
