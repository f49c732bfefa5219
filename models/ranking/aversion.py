"""What a user turned down lowers what is like it.

A ranker learns whom to show what from wishes alone, and many a catalogue has never seen an aversion: so this
is a fixed rule on the ranker's logits, not a weight that training would have had to find. What is like an
item is told by content, which new items have too.

Shapes: M candidates, A items turned down, W items wished for, E content width.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.catalogue.index import CatalogueIndex
from models.sequences.histories import Past


def aversion_penalty(
    catalogue: CatalogueIndex, row_M: Int64Array, averse_A: Int64Array, wished_W: Int64Array, weight: float
) -> Float32Array:
    """What to take off each candidate's logit, float32 [M], 0 where nothing was turned down.

    `weight` * log2(1 + a) * a / (a + w): `a` is how much of what was turned down, `w` how much of what was
    wished for, is like the candidate. Like an item is what is nearer to it than the catalogue is on average:
    likeness rises from 0 there to 1 at the item itself. So one skip among many wishes of a kind does
    little, and eight skips and no wish take about three times `weight` off the whole kind.
    """
    if not len(averse_A) or not len(row_M) or weight == 0.0:
        return np.zeros(len(row_M), dtype=np.float32)
    a_M = _likeness(catalogue, row_M, averse_A).sum(axis=0)
    w_M = _likeness(catalogue, row_M, wished_W).sum(axis=0)
    penalty: Float32Array = (weight * np.log2(1.0 + a_M) * a_M / np.maximum(a_M + w_M, 1e-6)).astype(
        np.float32
    )
    return penalty


def standing(averse: Past, wished: Past) -> Int64Array:
    """The rows turned down that were not wished for later, int64 [A]: a later wish takes an aversion back."""
    if not len(averse) or not len(wished):
        return averse.item_T
    is_same_AT = averse.item_T[:, None] == wished.item_T[None, :]
    is_later_AT = wished.time_ms_T[None, :] > averse.time_ms_T[:, None]
    found: Int64Array = averse.item_T[~(is_same_AT & is_later_AT).any(axis=1)]
    return found


def _likeness(catalogue: CatalogueIndex, row_M: Int64Array, other_X: Int64Array) -> Float32Array:
    """How like each candidate is to each of the other items, 0 to 1, [X, M]."""
    content_NE = np.asarray(catalogue.content_NE)
    other_XE = content_NE[other_X]
    cosine_XM = other_XE @ content_NE[row_M].T
    # the first level's centroids lie where the items do, and do not change while the codebook lives
    average_E = catalogue.codebook.centroids_LVE[0].mean(dim=0).numpy()
    average_X1 = np.minimum(other_XE @ average_E, 1.0 - 1e-3)[:, None]
    likeness: Float32Array = np.clip((cosine_XM - average_X1) / (1.0 - average_X1), 0.0, 1.0)
    return likeness
