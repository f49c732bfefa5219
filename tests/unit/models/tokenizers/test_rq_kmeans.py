"""Residual k-means: what its codes stand for, and the odd inputs it must take."""

from itertools import islice

import pytest
import torch

from models.tokenizers.codebook import Codebook
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

SMALL = CodebookConfig(num_levels=2, codebook_size=8, num_iterations=5)


def clustered(num: int = 200, dim: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=generator)
    return centres[torch.arange(num) % 20] + 0.1 * torch.randn(num, dim, generator=generator)


def test_codes_are_the_nearest_centroids_of_each_residual() -> None:
    codebook = fit_codebook(clustered(), SMALL)
    for vector, codes in zip(clustered(), codebook.encode(clustered()).tolist(), strict=True):
        residual = vector
        for level, code in enumerate(codes):
            distances = (residual - codebook.centroids_LVE[level]).square().sum(dim=1)
            assert distances[code] <= distances.min() + 1e-4
            residual = residual - codebook.centroids_LVE[level, code]


def test_each_level_lowers_the_error() -> None:
    content = clustered()
    codebook = fit_codebook(content, SMALL)
    first = Codebook(codebook.centroids_LVE[:1])
    assert 0 < codebook.quantisation_error(content) < first.quantisation_error(content)
    assert codebook.quantisation_error(content[:0]) == 0.0


def test_the_same_seed_gives_the_same_codebook_and_version() -> None:
    first, again = fit_codebook(clustered(), SMALL), fit_codebook(clustered(), SMALL)
    other = fit_codebook(clustered(), CodebookConfig(num_levels=2, codebook_size=8, seed=1))
    assert torch.equal(first.centroids_LVE, again.centroids_LVE)
    assert first.version == again.version != other.version


@pytest.mark.parametrize(
    "content",
    [clustered(1), clustered(5), torch.zeros(4, 6), clustered(3).repeat(50, 1), torch.eye(9, 6)],
    ids=["one", "fewer than codes", "zeros", "duplicates", "a zero vector"],
)
def test_few_and_equal_vectors(content: torch.Tensor) -> None:
    codebook = fit_codebook(content, SMALL)
    codes = codebook.encode(content)
    assert bool(torch.isfinite(codebook.centroids_LVE).all())
    assert len(torch.unique(codes, dim=0)) == len(torch.unique(content, dim=0))
    assert codebook.quantisation_error(content) < 1e-6


def test_prefixes_come_nearest_first_and_each_once() -> None:
    content = clustered()
    codebook = fit_codebook(content, SMALL)
    prefixes = list(codebook.nearest_prefixes(content[7]))
    assert prefixes[0] == tuple(codebook.encode(content[7:8])[0].tolist())
    assert len(set(prefixes)) == len(prefixes) == 64
    assert {prefix[0] for prefix in islice(prefixes, 8)} == {prefixes[0][0]}


def test_progress_and_wrong_input() -> None:
    seen: list[tuple[str, int, int]] = []
    fit_codebook(clustered(), SMALL, lambda *report: seen.append(report[:3]))
    assert seen == [("fit codebook", 1, 2), ("fit codebook", 2, 2)]
    with pytest.raises(ValueError, match="at least one"):
        fit_codebook(torch.zeros(0, 6), SMALL)
    with pytest.raises(ValueError, match="finite"):
        fit_codebook(torch.full((2, 6), torch.nan), SMALL)
