"""The encoded catalogue: one representation and one dense vector per row, kept for serving.

Owns when a row is encoded: when it is first needed, and again when its content or the weights changed.

Shapes: N items, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.arrays import BoolArray, Float32Array, Int64Array
from models.catalogue.index import CatalogueIndex
from models.decoding.nearest import NearestIndex
from models.networks.recommender import GenerativeRecommender

# Rows encoded together: the intermediate results are larger than the rows themselves.
_PART_ROWS = 8_192


class ItemTable:
    """`item_ND` (what histories are read with) and `vector_ND` (what the dense head compares with)."""

    def __init__(self, recommender: GenerativeRecommender, catalogue: CatalogueIndex) -> None:
        self.recommender = recommender
        self.catalogue = catalogue
        self._num_encoded = 0
        self._item_ND = torch.empty(0, recommender.config.d_model)  # with room for more rows
        self._vector_ND = torch.empty_like(self._item_ND)
        self._vectors: Float32Array = self._vector_ND.numpy()
        self._nearest: NearestIndex | None = None  # made when it is first asked

    @property
    def item_ND(self) -> Tensor:
        """Representations of all rows, float32 [N, D] without gradient."""
        self._sync()
        return self._item_ND[: self._num_encoded]

    @property
    def vector_ND(self) -> Tensor:
        """Dense vectors of all rows, float32 [N, D] without gradient."""
        self._sync()
        return self._vector_ND[: self._num_encoded]

    @property
    def vectors(self) -> Float32Array:
        """`vector_ND` as an array, which shares its memory and costs less to ask for."""
        self._sync()
        return self._vectors

    def nearest(
        self,
        query_BD: Float32Array,
        k: int,
        *,
        allowed_N: BoolArray,
        exclude: Sequence[Int64Array] | None = None,
    ) -> list[tuple[Int64Array, Float32Array]]:
        """For each query the int64 rows with the `k` highest products with dense vectors, and the
        products.

        As `models.decoding.nearest.NearestIndex.search`, `allowed_N` bool; raises ValueError for a k below 1.
        """
        vector_ND = self.vectors
        if self._nearest is None:
            self._nearest = NearestIndex(vector_ND.shape[1])
        for first in range(len(self._nearest), len(vector_ND), _PART_ROWS):
            self._nearest.put(first, torch.from_numpy(vector_ND[first : first + _PART_ROWS]))
        return self._nearest.search(query_BD, vector_ND, k, allowed_N=allowed_N, exclude=exclude)

    def refresh(self, recommender: GenerativeRecommender) -> None:
        """Forgets everything, and encodes with these weights from now on, of whatever width they are."""
        width = recommender.config.d_model
        if width != self._item_ND.shape[1]:
            self._item_ND, self._vector_ND = torch.empty(0, width), torch.empty(0, width)
        self.recommender = recommender
        self._num_encoded = 0
        self._vectors = self._vector_ND[:0].numpy()
        self._nearest = None

    def forget(self, row: int) -> None:
        """Encodes one row again: its content changed."""
        if row < self._num_encoded:
            item_1D, vector_1D = self._encode(slice(row, row + 1))
            self._item_ND[row], self._vector_ND[row] = item_1D[0], vector_1D[0]
            if self._nearest is not None and row < len(self._nearest):
                self._nearest.put(row, vector_1D)

    @torch.no_grad()
    def _encode(self, rows: slice) -> tuple[Tensor, Tensor]:
        item_ND = self.recommender.encode_items(
            self.catalogue.codes_NC[rows], self.catalogue.content_NE[rows]
        )
        return item_ND.float(), self.recommender.item_vectors(item_ND).float()

    def _sync(self) -> None:
        known, wanted = self._num_encoded, len(self.catalogue)
        if known == wanted:
            return
        if wanted > len(self._item_ND):
            self._item_ND = _with_room(self._item_ND[:known], wanted)
            self._vector_ND = _with_room(self._vector_ND[:known], wanted)
        for first in range(known, wanted, _PART_ROWS):
            rows = slice(first, min(first + _PART_ROWS, wanted))
            self._item_ND[rows], self._vector_ND[rows] = self._encode(rows)
        self._num_encoded = wanted
        self._vectors = self._vector_ND[:wanted].numpy()


def _with_room(table_ND: Tensor, num_rows: int) -> Tensor:
    """The same first rows in a table an eighth longer than `num_rows`, so that few insertions copy it."""
    longer = table_ND.new_empty(num_rows + num_rows // 8, table_ND.shape[1])
    longer[: len(table_ND)] = table_ND
    return longer
