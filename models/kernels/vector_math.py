"""exp and GELU of many numbers at once, on a CPU, compiled.

The C library's functions take one number at a time, some ten nanoseconds each; these are polynomials, which
become vector instructions. They are off by a unit or two in float32's last place.

Shapes: R rows, M numbers of a row.
"""

import numpy as np

from models.arrays import Float32Array
from models.kernels.compiled import compiled, compiled_fast

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts, the first with so few bits that its products with whole numbers are exact
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)  # exp of less is no normal number
_SQRT_HALF = np.float32(0.7071067811865476)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
# exp(r) - 1 - r over r^2 for |r| <= ln 2 / 2, highest power first (Cephes, expf.c)
_E5, _E4, _E3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E2, _E1, _E0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
# erf(z) = z P(z^2) / Q(z^2) for |z| <= 4, where float32's erf is 1 (Eigen's and XLA's), highest power first
_ERF_ENDS_AT = np.float32(4.0)
_P6, _P5 = np.float32(-2.72614225801306e-10), np.float32(2.77068142495902e-8)
_P4, _P3 = np.float32(-2.10102402082508e-6), np.float32(-5.69250639462346e-5)
_P2, _P1 = np.float32(-7.34990630326855e-4), np.float32(-2.95459980854025e-3)
_P0 = np.float32(-1.60960333262415e-2)
_Q4, _Q3 = np.float32(-1.45660718464996e-5), np.float32(-2.13374055278905e-4)
_Q2, _Q1 = np.float32(-1.68282697438203e-3), np.float32(-7.37332916720468e-3)
_Q0 = np.float32(-1.42647390514189e-2)


@compiled
def exp_of_negative(x_RM: Float32Array) -> None:
    """exp in place of float32 numbers that are not above 0; of less than -87 as of -87, 1.6e-38."""
    for r in range(x_RM.shape[0]):
        x_M = x_RM[r]
        for m in range(len(x_M)):
            x = max(x_M[m], _LOWEST)
            power = np.int32(x * _LOG2_E - _HALF)
            x = x - np.float32(power) * _LN_2_HIGH - np.float32(power) * _LN_2_LOW
            series = ((((_E5 * x + _E4) * x + _E3) * x + _E2) * x + _E1) * x + _E0
            two_to_power = np.int32((power + np.int32(127)) << np.int32(23)).view(np.float32)
            x_M[m] = (series * x * x + x + _ONE) * two_to_power


@compiled_fast
def gelu(x_RM: Float32Array) -> None:
    """The exact GELU, x (1 + erf(x / sqrt 2)) / 2, in place of float32 numbers."""
    for r in range(x_RM.shape[0]):
        x_M = x_RM[r]
        for m in range(len(x_M)):
            x = x_M[m]
            z = min(max(x * _SQRT_HALF, -_ERF_ENDS_AT), _ERF_ENDS_AT)
            s = z * z
            above = (((((_P6 * s + _P5) * s + _P4) * s + _P3) * s + _P2) * s + _P1) * s + _P0
            below = (((_Q4 * s + _Q3) * s + _Q2) * s + _Q1) * s + _Q0
            x_M[m] = _HALF * x * (_ONE + z * above / below)
