"""The encoded catalogue: one representation and one dense vector per row, kept for serving.

Owns when rows are encoded: a new row when it is first needed, all of them after the weights changed.

Shapes: N items, D width.
"""

import torch
from torch import Tensor

from models.catalogue import CatalogueIndex
from models.recommender import GenerativeRecommender


class ItemTable:
    """`item_ND` (what histories are read with) and `vector_ND` (what the dense head compares with)."""

    def __init__(self, recommender: GenerativeRecommender, catalogue: CatalogueIndex) -> None:
        self.recommender = recommender
        self.catalogue = catalogue
        self.weights_version = 0  # counts up whenever the weights are said to have changed
        width = recommender.config.d_model
        self._item_ND = torch.empty(0, width)
        self._vector_ND = torch.empty(0, width)

    @property
    def item_ND(self) -> Tensor:
        """Representations of all rows, float32 without gradient."""
        self._sync()
        return self._item_ND

    @property
    def vector_ND(self) -> Tensor:
        """Dense vectors of all rows, float32 without gradient."""
        self._sync()
        return self._vector_ND

    def set(self, item_ND: Tensor, vector_ND: Tensor) -> None:
        """Takes what a training step has just computed for all rows, instead of encoding them again."""
        self.weights_version += 1
        self._item_ND = item_ND.detach().float()
        self._vector_ND = vector_ND.detach().float()

    def refresh(self) -> None:
        """Forgets everything: the weights changed."""
        self.weights_version += 1
        self._item_ND = self._item_ND[:0]
        self._vector_ND = self._vector_ND[:0]

    def forget(self, row: int) -> None:
        """Encodes one row again: its content changed."""
        if row < len(self._item_ND):
            item_1D, vector_1D = self._encode(slice(row, row + 1))
            self._item_ND[row], self._vector_ND[row] = item_1D[0], vector_1D[0]

    @torch.no_grad()
    def _encode(self, rows: slice) -> tuple[Tensor, Tensor]:
        item_ND = self.recommender.encode_items(
            self.catalogue.codes_NC[rows], self.catalogue.content_NE[rows]
        )
        return item_ND.float(), self.recommender.item_vectors(item_ND).float()

    def _sync(self) -> None:
        known = len(self._item_ND)
        if known == len(self.catalogue):
            return
        item_ND, vector_ND = self._encode(slice(known, len(self.catalogue)))
        self._item_ND = torch.cat([self._item_ND, item_ND])
        self._vector_ND = torch.cat([self._vector_ND, vector_ND])
