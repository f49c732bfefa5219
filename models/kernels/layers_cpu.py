"""The layers of a small network on a CPU, compiled: products and layer norms of a few positions.

For a handful of positions torch takes longer to call a layer than to compute it. Here a network is one
compiled function, and what it calls costs nothing more than its arithmetic.

Shapes: Q positions, I inputs, O outputs, D width.
"""

import numpy as np

from models.arrays import Float32Array
from models.kernels.blas import use_one_thread
from models.kernels.compiled import compiled_fast

# OpenBLAS packs the weights before it multiplies several rows: seven take as long as seven times one (AVX2).
_FEW_ROWS = 6
_NORM_EPS = np.float32(1e-5)  # that of torch.nn.LayerNorm

use_one_thread()


@compiled_fast
def linear(x_QI: Float32Array, weight_IO: Float32Array, bias_O: Float32Array) -> Float32Array:
    """`x_QI @ weight_IO + bias_O` of contiguous float32 arrays: float32 [Q, O]."""
    out_QO = np.empty((len(x_QI), weight_IO.shape[1]), np.float32)
    if len(x_QI) > _FEW_ROWS:
        np.dot(x_QI, weight_IO, out_QO)
    else:
        for q in range(len(x_QI)):
            np.dot(x_QI[q : q + 1], weight_IO, out_QO[q : q + 1])
    for q in range(len(out_QO)):
        for n in range(len(bias_O)):
            out_QO[q, n] += bias_O[n]
    return out_QO


@compiled_fast
def normalised(x_QD: Float32Array) -> Float32Array:
    """Layer norm of each position, without a weight and bias of its own: float32 [Q, D]."""
    out_QD = np.empty_like(x_QD)
    width = x_QD.shape[1]
    for q in range(len(x_QD)):
        total = np.float32(0.0)
        for d in range(width):
            total += x_QD[q, d]
        mean = total / np.float32(width)
        square = np.float32(0.0)
        for d in range(width):
            square += (x_QD[q, d] - mean) * (x_QD[q, d] - mean)
        scale = np.float32(1.0) / np.sqrt(square / np.float32(width) + _NORM_EPS)
        for d in range(width):
            out_QD[q, d] = (x_QD[q, d] - mean) * scale
    return out_QD
