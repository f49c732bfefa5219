"""Linear layers as compiled kernels read them.

Shapes: I inputs, O outputs.
"""

import numpy as np
from torch import Tensor, nn

from models.arrays import Float32Array


def affine(linear: nn.Linear, norm: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor]:
    """Weight [I, O] and bias [O] with what the norm before it multiplies and adds."""
    weight_IO, bias_O = linear.weight.T, linear.bias
    if norm is None:
        return weight_IO, bias_O
    return norm.weight[:, None] * weight_IO, bias_O + norm.bias @ weight_IO


def contiguous(tensor: Tensor) -> Float32Array:
    """The tensor's numbers as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
