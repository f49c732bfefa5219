"""What every tokenizer does: the seam at which a second way from content to codes is put in.

Shapes: N items, L semantic levels, V codes of a level, E content width.
"""

from typing import Protocol

from torch import Tensor


class Tokenizer(Protocol):
    """Fitted: turns content embeddings into semantic codes, one for each level.

    The same content gives the same codes, whatever else is encoded beside it. A `CatalogueIndex` is built on
    a `Codebook`; `models.tokenizers.codebook.content_codebook` makes one that explains another's codes.
    """

    @property
    def num_levels(self) -> int:
        """L, the semantic levels; the disambiguation code is not one of them."""
        ...

    @property
    def codebook_size(self) -> int:
        """V, the number of codes of a level."""
        ...

    @property
    def content_dim(self) -> int:
        """E, the width of the content embeddings it takes."""
        ...

    def encode(self, content_NE: Tensor) -> Tensor:
        """Codes int64 [N, L], each in [0, V), of float32 [N, E]; N may be 0. Raises ValueError for another
        E."""
        ...
