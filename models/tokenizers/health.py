"""How well a codebook fits the items that it holds: code usage, quantisation error, collisions.

Shapes: N items, L semantic levels, C = L + 1 codes of an item, E content width, P distinct prefixes.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.tokenizers.codebook import Codebook


@dataclass(frozen=True, kw_only=True)
class CodebookHealth:
    """For each level, the share of codes in use and the mean squared residual; the share of the items whose
    semantic prefix another one shares."""

    usage_ratio_L: list[float]
    quantisation_error_L: list[float]
    collision_ratio: float
    num_items: int


def distinct_prefix_ratio(codes_NC: Tensor) -> float:
    """Distinct semantic prefixes (int64 [N, C] without the last code) for each item; 1 where none is shared.

    1 too where there is no item.
    """
    prefix_NL = codes_NC[:, :-1].numpy()
    return len(np.unique(prefix_NL, axis=0)) / len(prefix_NL) if len(prefix_NL) else 1.0


def codebook_health(codebook: Codebook, codes_NC: Tensor, content_NE: Tensor) -> CodebookHealth:
    """Of the codes that the items have (int64 [N, C]), not those they would get now; content float32 [N,
    E]."""
    codes_NL = codes_NC[:, : codebook.num_levels].numpy()
    residual_NE = content_NE.clone()
    usage, errors = [], []
    for level in range(codebook.num_levels):
        code_N = codes_NL[:, level]
        residual_NE -= codebook.centroids_LVE[level, code_N]
        usage.append(len(np.unique(code_N)) / codebook.codebook_size)
        errors.append(float(residual_NE.square().sum(dim=1).mean()) if len(code_N) else 0.0)
    collisions = 0.0
    if len(codes_NL):
        _, count_P = np.unique(codes_NL, axis=0, return_counts=True)
        collisions = float(count_P[count_P > 1].sum() / len(codes_NL))
    return CodebookHealth(
        usage_ratio_L=usage, quantisation_error_L=errors, collision_ratio=collisions, num_items=len(codes_NL)
    )
