"""The items whose vectors are nearest to a query: the k highest dot products, exact.

Owns a copy of the vectors in one byte a number, which says what each product is at most; only those that
may be among the best are computed from the vectors themselves. Does not know what the vectors mean.

Shapes: B queries, N rows, S rows on the short list, D width, K neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import BoolArray, Float32Array, Int8Array, Int64Array
from models.kernels.nearest_cpu import dot_products, upper_bounds

_MAX_CODE = 127
# This many times k products are computed at first; where the bounds leave a doubt, four times as many.
_SHORT_LIST, _LONGER = 4, 4
# What a float32 sum of products may be off by, as a share of both lengths: enough for 800 numbers.
_ROUNDING = 1e-4


class NearestIndex:
    """Vectors known by row; rows may be replaced, and added at the end."""

    def __init__(self, width: int) -> None:
        self._num_rows = 0
        self._code_ND: Int8Array = np.empty((0, width), np.int8)  # with room for more rows
        self._scale_N: Float32Array = np.empty(0, np.float32)
        self._residual_N: Float32Array = np.empty(0, np.float32)

    def __len__(self) -> int:
        return self._num_rows

    def put(self, first_row: int, vector_ND: Tensor) -> None:
        """Takes float32 vectors of the rows from `first_row` on; IndexError if that leaves a gap."""
        end = first_row + len(vector_ND)
        if first_row > self._num_rows:
            raise IndexError(f"row {first_row} comes after {self._num_rows} rows")
        if end > len(self._code_ND):
            self._make_room(end + end // 8)
        scale_N = vector_ND.abs().amax(1) / _MAX_CODE
        code_ND = (vector_ND / scale_N.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        residual_N = (vector_ND - code_ND * scale_N[:, None]).norm(dim=1) * (1 + _ROUNDING)
        self._code_ND[first_row:end] = code_ND.to(torch.int8).numpy()
        self._scale_N[first_row:end] = scale_N.numpy()
        # the products below are rounded as well
        self._residual_N[first_row:end] = (residual_N + _ROUNDING * vector_ND.norm(dim=1)).numpy()
        self._num_rows = max(self._num_rows, end)

    def _make_room(self, capacity: int) -> None:
        used = self._num_rows
        old = self._code_ND[:used], self._scale_N[:used], self._residual_N[:used]
        self._code_ND = np.empty((capacity, self._code_ND.shape[1]), np.int8)
        self._scale_N, self._residual_N = np.empty(capacity, np.float32), np.empty(capacity, np.float32)
        self._code_ND[:used], self._scale_N[:used], self._residual_N[:used] = old

    def search(
        self,
        query_BD: Tensor,
        vector_ND: Tensor,
        k: int,
        *,
        allowed_N: BoolArray,
        exclude: Sequence[Int64Array] | None = None,
    ) -> list[tuple[Int64Array, Float32Array]]:
        """For each float32 query the int64 rows with its `k` highest products and those, best first, ties by
        row.

        `vector_ND` are the vectors that were put in, float32. Rows that `allowed_N` (bool) forbids or a
        query's `exclude` names (-1 is ignored) are never found, so there may be fewer than k. A query's
        result does not depend on the others. Raises ValueError for a k below 1, and unless `exclude` has one
        array for each query.
        """
        if k < 1:
            raise ValueError("k must be at least 1")
        queries_BD, vectors_ND = np.ascontiguousarray(query_BD.numpy()), vector_ND.numpy()
        used = slice(0, self._num_rows)
        bound_BN = upper_bounds(
            queries_BD, self._code_ND[used], self._scale_N[used], self._residual_N[used], allowed_N
        )
        if exclude is not None:
            for bound_N, rows in zip(bound_BN, exclude, strict=True):
                bound_N[rows[(rows >= 0) & (rows < self._num_rows)]] = -np.inf
        return [_best(*one, vectors_ND, k) for one in zip(queries_BD, bound_BN, strict=True)]


def _best(
    query_D: Float32Array, bound_N: Float32Array, vector_ND: Float32Array, k: int
) -> tuple[Int64Array, Float32Array]:
    """The k best rows of one query, from a short list that is long enough."""
    num_rows, num_allowed = len(bound_N), int((bound_N > -np.inf).sum())
    size = min(num_allowed, _SHORT_LIST * k)
    while size < num_allowed:
        # the first of these has the highest bound outside the list
        row_S = np.argpartition(bound_N, num_rows - size - 1)[num_rows - size - 1 :]
        found_K, product_K = _highest(query_D, vector_ND, row_S[1:], k)
        if product_K[-1] > bound_N[row_S[0]]:
            return found_K, product_K
        size = min(num_allowed, _LONGER * size)
    return _highest(query_D, vector_ND, np.nonzero(bound_N > -np.inf)[0], k)


def _highest(
    query_D: Float32Array, vector_ND: Float32Array, row_S: Int64Array, k: int
) -> tuple[Int64Array, Float32Array]:
    row_S = np.sort(row_S)
    product_S = dot_products(query_D, vector_ND, row_S)
    order_K = np.argsort(-product_S, kind="stable")[:k]
    return row_S[order_K], product_S[order_K]
