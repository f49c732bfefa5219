"""The settings of continuous fine-tuning."""

from dataclasses import dataclass

from models.checks import require


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Continuous fine-tuning: one optimiser step for each micro-batch.

    Every `score_every`-th wish is predicted before it is learned; the quality figures and the ranker's
    examples come from those. The live release predicts every `gate_every`-th of them too, for the paired test
    over `gate_window` events. After a step, the weights go `anchor_strength` of the way back to the live
    release's. `replay_ratio` replayed targets are learned for each new one. Windows count events; a user's
    newest `max_seen_events` items are known as seen.
    """

    learning_rate: float = 3e-4
    ranker_learning_rate: float = 1e-3
    replay_ratio: float = 1.0
    reservoir_size: int = 20_000
    anchor_strength: float = 1e-3
    max_grad_norm: float = 1.0
    score_every: int = 4
    dedupe_window: int = 1_000_000
    max_seen_events: int = 1_000
    quality_window: int = 2_000
    popularity_window: int = 5_000
    gate_every: int = 4
    gate_window: int = 2_000
    gate_tolerance: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate must be positive")
        require(self.ranker_learning_rate > 0, "ranker_learning_rate must be positive")
        require(self.replay_ratio >= 0, "replay_ratio must not be negative")
        require(self.reservoir_size >= 0, "reservoir_size must not be negative")
        require(0 <= self.anchor_strength < 1, "anchor_strength must be in [0, 1)")
        require(self.score_every >= 1, "score_every must be at least 1")
        require(self.dedupe_window >= 0, "dedupe_window must not be negative")
        require(self.max_seen_events >= 1, "max_seen_events must be at least 1")
        require(self.quality_window >= 1, "quality_window must be at least 1")
        require(self.popularity_window >= 1, "popularity_window must be at least 1")
        require(self.gate_every >= 1, "gate_every must be at least 1")
        require(self.gate_window >= 1, "gate_window must be at least 1")
        require(self.gate_tolerance >= 0, "gate_tolerance must not be negative")
        require(self.seed >= 0, "seed must not be negative")
