"""The settings of a codebook. One default serves every data set."""

from dataclasses import dataclass

from models.checks import require


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """RQ-KMeans: `num_levels` codebooks of `codebook_size` centroids, then one disambiguation code."""

    num_levels: int = 3
    codebook_size: int = 256
    num_iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.num_levels <= 8, "num_levels must be 1 to 8")
        require(2 <= self.codebook_size <= 4096, "codebook_size must be 2 to 4096")
        require(self.num_iterations >= 1, "num_iterations must be at least 1")
        require(self.seed >= 0, "seed must not be negative")
