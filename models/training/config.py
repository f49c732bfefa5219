"""The settings of offline training."""

from dataclasses import dataclass

from models.checks import require


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Offline training: stage 1 aligns the SID embeddings, stage 2 trains everything.

    The cost and the effect of a step depend on its number of events, so its size is `batch_positions` events:
    about 256 short histories, or 40 long ones.
    """

    align_epochs: int = 1
    max_epochs: int = 8
    patience_epochs: int = 3
    batch_positions: int = 1_536
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.align_epochs >= 0, "align_epochs must not be negative")
        require(self.max_epochs >= 0, "max_epochs must not be negative")
        require(self.patience_epochs >= 1, "patience_epochs must be at least 1")
        require(self.batch_positions >= 1, "batch_positions must be at least 1")
        require(self.learning_rate > 0, "learning_rate must be positive")
        require(self.weight_decay >= 0, "weight_decay must not be negative")
        require(self.seed >= 0, "seed must not be negative")
