"""The items whose vectors are nearest to a query: the k highest dot products, exact.

Owns a copy of the vectors in one byte a number, which says what each product is at most; only those that
may be among the best are computed from the vectors themselves. Does not know what the vectors mean.

Shapes: B queries, N rows, D width, K neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import BoolArray, Float32Array, Int8Array, Int64Array
from models.decoding.exclusions import flat_exclusions
from models.kernels.nearest_cpu import MAX_CODE, nearest_rows

# What a float32 sum of products may be off by, as a share of both lengths: enough for 800 numbers.
_ROUNDING = 1e-4


class NearestIndex:
    """Vectors known by row; rows may be replaced, and added at the end."""

    def __init__(self, width: int) -> None:
        self._num_rows = 0
        self._code_ND: Int8Array = np.empty((0, width), np.int8)  # with room for more rows
        self._scale_N: Float32Array = np.empty(0, np.float32)
        self._residual_N: Float32Array = np.empty(0, np.float32)
        self._used = self._code_ND, self._scale_N, self._residual_N

    def __len__(self) -> int:
        return self._num_rows

    def put(self, first_row: int, vector_ND: Tensor) -> None:
        """Takes float32 vectors of the rows from `first_row` on; IndexError if that leaves a gap."""
        end = first_row + len(vector_ND)
        if first_row > self._num_rows:
            raise IndexError(f"row {first_row} comes after {self._num_rows} rows")
        if end > len(self._code_ND):
            self._make_room(end + end // 8)
        scale_N = vector_ND.abs().amax(1) / MAX_CODE
        code_ND = (vector_ND / scale_N.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        residual_N = (vector_ND - code_ND * scale_N[:, None]).norm(dim=1) * (1 + _ROUNDING)
        self._code_ND[first_row:end] = code_ND.to(torch.int8).numpy()
        self._scale_N[first_row:end] = scale_N.numpy()
        # the products below are rounded as well
        self._residual_N[first_row:end] = (residual_N + _ROUNDING * vector_ND.norm(dim=1)).numpy()
        self._num_rows = max(self._num_rows, end)
        used = slice(0, self._num_rows)
        self._used = self._code_ND[used], self._scale_N[used], self._residual_N[used]

    def _make_room(self, capacity: int) -> None:
        used = self._num_rows
        old = self._code_ND[:used], self._scale_N[:used], self._residual_N[:used]
        self._code_ND = np.empty((capacity, self._code_ND.shape[1]), np.int8)
        self._scale_N, self._residual_N = np.empty(capacity, np.float32), np.empty(capacity, np.float32)
        self._code_ND[:used], self._scale_N[:used], self._residual_N[:used] = old

    def search(
        self,
        query_BD: Float32Array,
        vector_ND: Float32Array,
        k: int,
        *,
        allowed_N: BoolArray,
        exclude: Sequence[Int64Array] | None = None,
    ) -> list[tuple[Int64Array, Float32Array]]:
        """For each query the int64 rows with its `k` highest products and those, best first, ties by row.

        `vector_ND` are the vectors that were put in; both are contiguous. Rows that `allowed_N` (bool)
        forbids or a query's `exclude` names (-1 is ignored) are never found, so there may be fewer than k. A
        query's result does not depend on the others. Raises ValueError for a k below 1, and unless `exclude`
        has one array for each query.
        """
        if k < 1:
            raise ValueError("k must be at least 1")
        row_BK, product_BK, found_B = nearest_rows(
            query_BD,
            *self._used,
            vector_ND,
            allowed_N,
            *flat_exclusions(exclude, len(query_BD)),
            k,
        )
        return [
            (row_K[:found], product_K[:found])
            for row_K, product_K, found in zip(row_BK, product_BK, found_B.tolist(), strict=True)
        ]
