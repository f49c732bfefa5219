"""Content vectors as codebooks and networks take them.

Shapes: N items, E content width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def unit_vectors(content_NE: Tensor) -> Tensor:
    """Float32 [..., E] of length 1, zeros where all are 0.

    Divided by its largest number first: the square of 1e30 or of 1e-30 is no float32.
    """
    largest_N1 = content_NE.abs().amax(dim=-1, keepdim=True)
    return functional.normalize(content_NE / torch.where(largest_N1 > 0, largest_N1, 1.0), dim=-1)
