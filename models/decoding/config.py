"""The settings of a search for candidates."""

from dataclasses import dataclass

from models.checks import require


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a request gets when it does not ask otherwise.

    `aversion_weight` scales what is taken off the logits of items like those that the user turned down
    (`models.ranking.aversion`); 0 takes nothing off.
    """

    beam: int = 50
    num_dense: int = 50
    aversion_weight: float = 3.0

    def __post_init__(self) -> None:
        require(1 <= self.beam <= 512, "beam must be 1 to 512")
        require(0 <= self.num_dense <= 512, "num_dense must be 0 to 512")
        require(self.aversion_weight >= 0, "aversion_weight must not be negative")
