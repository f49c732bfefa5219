"""The layers of a small network on a CPU, compiled: products, layer norm and GELU of a few positions.

For a handful of positions torch takes longer to call a layer than to compute it. Here a network is one
compiled function, and what it calls costs nothing more than its arithmetic.

Shapes: Q positions, I inputs, O outputs, D width.
"""

import math

import numpy as np

from models.arrays import Float32Array
from models.kernels.compiled import compiled_fast

# Up to this many multiplications OpenBLAS takes one thread, and the caller's: threads that wait for each
# other cost a small product more than they save. One piece after the other is as fast as the whole.
_MOST_OF_ONE_THREAD = 1 << 18

_NORM_EPS = np.float32(1e-5)  # that of torch.nn.LayerNorm
_SQRT_HALF = np.float32(math.sqrt(0.5))
# erf(z) = z P(z^2) / Q(z^2) in float32 for |z| <= 4, where it is 1: the rational function that Eigen and XLA
# use, off by less than 5e-7. A call of the C library for each number takes ten times as long.
_ERF_END = np.float32(4.0)
_P = tuple(
    np.float32(c)
    for c in (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    )
)
_Q = tuple(
    np.float32(c)
    for c in (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)


@compiled_fast
def linear(x_QI: Float32Array, weight_IO: Float32Array, bias_O: Float32Array) -> Float32Array:
    """`x_QI @ weight_IO + bias_O` of contiguous float32 arrays: float32 [Q, O]."""
    out_QO = np.empty((len(x_QI), weight_IO.shape[1]), np.float32)
    num_rows = max(1, _MOST_OF_ONE_THREAD // max(1, weight_IO.size))
    for begin in range(0, len(x_QI), num_rows):
        np.dot(x_QI[begin : begin + num_rows], weight_IO, out_QO[begin : begin + num_rows])
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


@compiled_fast
def gelu_inplace(x_n: Float32Array) -> None:
    """The exact GELU, x (1 + erf(x / sqrt 2)) / 2, of contiguous float32 numbers."""
    for n in range(len(x_n)):
        z = x_n[n] * _SQRT_HALF
        z = _ERF_END if z > _ERF_END else z
        z = -_ERF_END if z < -_ERF_END else z
        s = z * z
        p = (((((_P[0] * s + _P[1]) * s + _P[2]) * s + _P[3]) * s + _P[4]) * s + _P[5]) * s + _P[6]
        q = (((_Q[0] * s + _Q[1]) * s + _Q[2]) * s + _Q[3]) * s + _Q[4]
        x_n[n] = np.float32(0.5) * x_n[n] * (np.float32(1.0) + z * p / q)
