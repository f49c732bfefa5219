"""The texts of announced items embedded, for those that bring no vector of their own.

Which vector of its own an item is known by is `models/tokenizers/content.py`'s.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.tokenizers.content import TEXT, Space
from models.tokenizers.text import TEXT_DIM, TextEmbedder, item_text
from protos.headrace.v1.items_pb2 import Item


class ContentEmbedder:
    """Embeds the texts of items; the model is loaded when it is first needed."""

    def __init__(self) -> None:
        self._embedder: TextEmbedder | None = None

    def can_embed(self, space: Space) -> bool:
        """Whether embedded texts lie in this space."""
        return space.width == TEXT_DIM and space.modality in ("", TEXT)

    def embed_many(self, items: Sequence[Item]) -> Tensor:
        """Float32 [N, 384], L2-normalised, of the items' texts."""
        if self._embedder is None:
            # Items come a few at a time, in batches of every shape. In bf16, oneDNN keeps a prepared product
            # for each: 290 MB after a hundred texts, where float32 needs 20.
            self._embedder = TextEmbedder(dtype=torch.float32)
        return self._embedder.embed_many([item_text(i.title, i.brand, i.categories) for i in items])
