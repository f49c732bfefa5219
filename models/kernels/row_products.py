"""Dot products of rows of one table with each other, on a CPU, compiled: without a copy of the rows.

Shapes: N rows of the table, R and M rows of each side, E width.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled_fast


@compiled_fast
def products_of_rows(content_NE: Float32Array, row_R: Int64Array, row_M: Int64Array) -> Float32Array:
    """The products of each of `row_R` with each of `row_M`, float32 [R, M]."""
    product_RM = np.empty((len(row_R), len(row_M)), np.float32)
    for m in range(len(row_M)):
        content_E = content_NE[row_M[m]]
        for r in range(len(row_R)):
            other_E = content_NE[row_R[r]]
            total = np.float32(0.0)
            for e in range(len(content_E)):
                total += other_E[e] * content_E[e]
            product_RM[r, m] = total
    return product_RM
