"""The codebook: centroids that turn a content embedding into one code for each level.

Knows vectors and codes; which item holds which code, and the disambiguation code, belong to
`models/catalogue/index.py`, how centroids are fitted to `models/tokenizers/rq_kmeans.py`.

Shape letters: N items, L levels, V codebook size, E content width.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_CHUNK = 16_384


@dataclass(frozen=True)
class Codebook:
    """L levels of V centroids: `centroids_LVE` float32. A `models.tokenizers.base.Tokenizer`.

    Raises ValueError for another dtype or number of dimensions.
    """

    centroids_LVE: Tensor

    def __post_init__(self) -> None:
        if self.centroids_LVE.dim() != 3 or self.centroids_LVE.dtype != torch.float32:
            raise ValueError("centroids_LVE must be a float32 tensor of three dimensions")

    @property
    def num_levels(self) -> int:
        """L, the semantic levels; the disambiguation code is not one of them."""
        return self.centroids_LVE.shape[0]

    @property
    def codebook_size(self) -> int:
        """V, the number of codes of a level."""
        return self.centroids_LVE.shape[1]

    @property
    def content_dim(self) -> int:
        """E, the width of the content embeddings it quantises."""
        return self.centroids_LVE.shape[2]

    @cached_property
    def version(self) -> str:
        """Names the codebook: equal for equal centroids, 12 hexadecimal digits."""
        digest = hashlib.sha256(str(tuple(self.centroids_LVE.shape)).encode())
        digest.update(self.centroids_LVE.contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def encode(self, content_NE: Tensor) -> Tensor:
        """The nearest code of each level, int64 [N, L], for float32 [N, E]; ties go to the lowest code.

        Raises ValueError for another E.
        """
        return self.quantise(content_NE)[0]

    def quantise(self, content_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as of `encode` and what they leave over, float32 [N, E]."""
        if content_NE.dim() != 2 or content_NE.shape[1] != self.content_dim:
            raise ValueError(f"content of shape {tuple(content_NE.shape)}, expected (N, {self.content_dim})")
        codes_NL = torch.empty(len(content_NE), self.num_levels, dtype=torch.int64)
        residual_NE = content_NE.to(torch.float32).clone()
        for begin in range(0, len(content_NE), _CHUNK):
            residual_nE = residual_NE[begin : begin + _CHUNK]
            for level in range(self.num_levels):
                code_n = self._distances(residual_nE, level).argmin(dim=1)
                codes_NL[begin : begin + _CHUNK, level] = code_n
                residual_nE -= self.centroids_LVE[level, code_n]
        return codes_NL, residual_NE

    def quantisation_error(self, content_NE: Tensor) -> float:
        """The mean squared distance between float32 vectors [N, E] and what their codes stand for; 0 for
        none. Raises ValueError for another E."""
        if not len(content_NE):
            return 0.0
        return float(self.quantise(content_NE)[1].square().sum(dim=1).mean())

    def nearest_prefixes(self, content_E: Tensor) -> Iterator[tuple[int, ...]]:
        """Every tuple of L codes for float32 [E], the last level nearest first, then the level before it, and
        so on.

        The first is `encode`'s; a caller that finds it full takes the next.
        """
        return self._walk(content_E.to(torch.float32), 0)

    def _walk(self, residual_E: Tensor, level: int) -> Iterator[tuple[int, ...]]:
        if level == self.num_levels:
            yield ()
            return
        distance_V = self._distances(residual_E[None], level)[0]
        for code in torch.sort(distance_V, stable=True).indices.tolist():
            for rest in self._walk(residual_E - self.centroids_LVE[level, code], level + 1):
                yield (code, *rest)

    def _distances(self, residual_NE: Tensor, level: int) -> Tensor:
        """Squared distances less the vector's own squared length, which is the same for every code."""
        return torch.addmm(self._square_LV[level], residual_NE, self.centroids_LVE[level].T, alpha=-2.0)

    @cached_property
    def _square_LV(self) -> Tensor:
        return self.centroids_LVE.square().sum(dim=2)


def content_codebook(codes_NL: Tensor, content_NE: Tensor, codebook_size: int) -> Codebook:
    """The codebook in content space (float32 [N, E]) that best explains given codes (int64 [N, L]), level by
    level.

    A code's centroid is the mean of what its members' earlier levels left over; one without members is zero.
    It lets a `CatalogueIndex` hold items with the codes of any other tokenizer; codes of new items would have
    to come from that tokenizer itself.
    """
    num_levels = codes_NL.shape[1]
    centroids_LVE = torch.zeros(num_levels, codebook_size, content_NE.shape[1])
    residual_NE = content_NE.clone()
    for level in range(num_levels):
        code_N = codes_NL[:, level]
        count_V = torch.bincount(code_N, minlength=codebook_size).clamp(min=1)
        centroids_LVE[level].index_add_(0, code_N, residual_NE)
        centroids_LVE[level] /= count_V[:, None]
        residual_NE -= centroids_LVE[level, code_N]
    return Codebook(centroids_LVE)
