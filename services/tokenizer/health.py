"""How well a codebook fits a catalogue: code usage, quantisation error, collisions.

Shapes: N items, L levels, E content width.
"""

from dataclasses import dataclass

import numpy as np

from models.catalogue.index import CatalogueIndex
from services.metrics import CODEBOOK_ERROR, CODEBOOK_USAGE, SID_COLLISIONS


@dataclass(frozen=True)
class CodebookHealth:
    """Per level, the share of codes in use and the mean squared residual; over all, collisions."""

    usage_ratio_L: list[float]
    quantisation_error_L: list[float]
    collision_ratio: float
    num_items: int


def codebook_health(index: CatalogueIndex) -> CodebookHealth:
    """Measures the codes that the items have (not those they would get now) and sets the gauges."""
    codebook = index.codebook
    codes_NL = index.codes_NC[:, : codebook.num_levels].numpy()
    residual_NE = index.content_NE.clone()
    usage, errors = [], []
    for level in range(codebook.num_levels):
        codes_N = codes_NL[:, level]
        residual_NE -= codebook.centroids_LVE[level, codes_N]
        usage.append(len(np.unique(codes_N)) / codebook.codebook_size)
        errors.append(float(residual_NE.square().sum(dim=1).mean()) if len(codes_N) else 0.0)
        CODEBOOK_USAGE.labels(str(level + 1)).set(usage[-1])
        CODEBOOK_ERROR.labels(str(level + 1)).set(errors[-1])
    collisions = 0.0
    if len(codes_NL):
        _, count_P = np.unique(codes_NL, axis=0, return_counts=True)
        collisions = float(count_P[count_P > 1].sum() / len(codes_NL))
    SID_COLLISIONS.set(collisions)
    return CodebookHealth(usage, errors, collisions, len(index))
