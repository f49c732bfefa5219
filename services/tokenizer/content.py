"""The content embedding of an announced item: a precomputed one, or its text embedded.

Knows no codebook: the wanted width comes with the call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.tokenizers.content import unit_vectors
from models.tokenizers.text import TEXT_DIM, TextEmbedder, item_text
from protos.headrace.v1.items_pb2 import Item

_TEXT = "text"


def precomputed(item: Item, content_dim: int) -> Tensor | None:
    """The item's own vector of width `content_dim`, L2-normalised float32 [E]: `text` first, then any."""
    fitting = [e for e in item.embeddings if len(e.values) == content_dim]
    fitting.sort(key=lambda embedding: embedding.modality != _TEXT)
    if not fitting:
        return None
    return unit_vectors(torch.tensor(fitting[0].values, dtype=torch.float32))


class ContentEmbedder:
    """Embeds the texts of items that bring no vector of their own; the model is loaded when first needed."""

    def __init__(self) -> None:
        self._embedder: TextEmbedder | None = None

    def can_embed(self, content_dim: int) -> bool:
        """Whether texts are embedded to this width."""
        return content_dim == TEXT_DIM

    def embed_many(self, items: Sequence[Item]) -> Tensor:
        """Float32 [N, 384], L2-normalised, of the items' texts."""
        if self._embedder is None:
            self._embedder = TextEmbedder()
        return self._embedder.embed_many([item_text(i.title, i.brand, i.categories) for i in items])
