"""The settings of every model component: frozen, keyword-only, each checking itself.

One default serves every data set; nothing here knows the name of one. Times are data, so there is
no clock; sizes that a data set decides (the width of its content embeddings) are fitted, not set.
"""

from dataclasses import dataclass

TRUNKS = ("softmax", "hstu")
_MAX_WIDTH = 16_384


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """RQ-KMeans: `num_levels` codebooks of `codebook_size` centroids, then one disambiguation code."""

    num_levels: int = 3
    codebook_size: int = 256
    num_iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        _require(1 <= self.num_levels <= 8, "num_levels must be 1 to 8")
        _require(2 <= self.codebook_size <= 4096, "codebook_size must be 2 to 4096")
        _require(self.num_iterations >= 1, "num_iterations must be at least 1")
        _require(self.seed >= 0, "seed must not be negative")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. `content_dim` is the width of the content embeddings it was made for.

    At most `num_identities` items have a vector of their own (`models.item_identities`); training takes no
    more slots than its catalogue needs. The ranker has its own, narrower trunk of one layer and `ranker_dim`.
    `dropout` is the trunk's, `decoder_dropout` the decoder's, whose feed-forward is `decoder_ffn_ratio`
    times as wide as the model: a search runs it for every prefix. `trunk` is "softmax" (attention with ALiBi
    distances and a feed-forward, `models.trunk`) or "hstu" (`models.hstu`).
    """

    content_dim: int = 384
    trunk: str = "softmax"
    num_levels: int = 3
    codebook_size: int = 256
    d_model: int = 256
    num_layers: int = 2
    num_heads: int = 4
    max_history: int = 50
    dropout: float = 0.3
    decoder_dropout: float = 0.1
    decoder_ffn_ratio: int = 1
    num_identities: int = 65_536
    identity_dropout: float = 0.1
    ranker_dim: int = 64

    def __post_init__(self) -> None:
        _require(self.trunk in TRUNKS, f"trunk must be one of {', '.join(TRUNKS)}")
        _require(1 <= self.num_levels <= 8, "num_levels must be 1 to 8")
        _require(2 <= self.codebook_size <= 4096, "codebook_size must be 2 to 4096")
        _require(1 <= self.num_layers <= 64, "num_layers must be 1 to 64")
        for name in ("content_dim", "d_model", "num_heads", "ranker_dim"):
            _require(1 <= getattr(self, name) <= _MAX_WIDTH, f"{name} must be 1 to {_MAX_WIDTH}")
        _require(self.d_model % self.num_heads == 0, "d_model must be a multiple of num_heads")
        _require(self.ranker_dim % self.num_heads == 0, "ranker_dim must be a multiple of num_heads")
        _require(self.max_history >= 1, "max_history must be at least 1")
        _require(self.num_identities >= 0, "num_identities must not be negative")
        _require(1 <= self.decoder_ffn_ratio <= 8, "decoder_ffn_ratio must be 1 to 8")
        for name in ("dropout", "decoder_dropout", "identity_dropout"):
            _require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a request gets when it does not ask otherwise.

    `aversion_weight` scales what is taken off the logits of items like those that the user turned down
    (`models.aversion`); 0 takes nothing off.
    """

    beam: int = 50
    num_dense: int = 50
    aversion_weight: float = 3.0

    def __post_init__(self) -> None:
        _require(1 <= self.beam <= 512, "beam must be 1 to 512")
        _require(0 <= self.num_dense <= 512, "num_dense must be 0 to 512")
        _require(self.aversion_weight >= 0, "aversion_weight must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Offline training: stage 1 aligns the SID embeddings, stage 2 trains everything.

    A step costs and teaches by the events in it, so its size is `batch_positions` events: about 256 short
    histories, or 40 long ones.
    """

    align_epochs: int = 1
    max_epochs: int = 8
    patience_epochs: int = 3
    batch_positions: int = 1_536
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.align_epochs >= 0, "align_epochs must not be negative")
        _require(self.max_epochs >= 0, "max_epochs must not be negative")
        _require(self.patience_epochs >= 1, "patience_epochs must be at least 1")
        _require(self.batch_positions >= 1, "batch_positions must be at least 1")
        _require(self.learning_rate > 0, "learning_rate must be positive")
        _require(self.weight_decay >= 0, "weight_decay must not be negative")
        _require(self.seed >= 0, "seed must not be negative")


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Live statistics: decayed counts per half-life and co-occurrence with the last items.

    `trending_half_life` is a position in `half_lives_s`. An item keeps `max_neighbours` ties; an item
    `n` events before the newest weighs `recency_decay ** n`, and a tie from the later to the earlier
    item `backward_weight` of the forward one. The `max_users` users with the newest events are known.
    An item counts once for each user in a window of `count_window_s`; the newest `max_counted` such counts
    are remembered.
    """

    half_lives_s: tuple[float, ...] = (3_600.0, 86_400.0, 604_800.0, 2_592_000.0)
    trending_half_life: int = 2
    num_recent_items: int = 5
    max_neighbours: int = 64
    recency_decay: float = 0.8
    backward_weight: float = 0.5
    cooccurrence_half_life_s: float = 7_776_000.0
    max_users: int = 1_000_000
    count_window_s: float = 86_400.0
    max_counted: int = 200_000

    def __post_init__(self) -> None:
        _require(len(self.half_lives_s) > 0, "there must be a half-life")
        _require(all(h > 0 for h in self.half_lives_s), "half-lives must be positive")
        _require(self.cooccurrence_half_life_s > 0, "half-lives must be positive")
        _require(
            0 <= self.trending_half_life < len(self.half_lives_s),
            "trending_half_life must be a position in half_lives_s",
        )
        _require(self.num_recent_items >= 1, "num_recent_items must be at least 1")
        _require(self.max_neighbours >= self.num_recent_items, "max_neighbours must hold the recent items")
        _require(0 < self.recency_decay <= 1, "recency_decay must be in (0, 1]")
        _require(self.max_users >= 1, "max_users must be at least 1")
        _require(self.count_window_s > 0, "count_window_s must be positive")
        _require(self.max_counted >= 1, "max_counted must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Continuous fine-tuning: one optimiser step for each micro-batch.

    Of a micro-batch, `num_scored_events` evenly spaced events are predicted before they are learned; the
    quality figures and the ranker's examples come from those. The live release predicts every
    `gate_every`-th of them too, for the paired test over `gate_window` events. After a step, the weights
    go `anchor_strength` of the way back to the live release's. `replay_ratio` replayed targets are
    learned for each new one. Windows count events; a user's newest `max_seen_events` items are known as seen.
    """

    learning_rate: float = 3e-4
    ranker_learning_rate: float = 1e-3
    replay_ratio: float = 1.0
    reservoir_size: int = 20_000
    anchor_strength: float = 1e-3
    max_grad_norm: float = 1.0
    num_scored_events: int = 64
    dedupe_window: int = 1_000_000
    max_seen_events: int = 1_000
    quality_window: int = 2_000
    popularity_window: int = 5_000
    gate_every: int = 8
    gate_window: int = 2_000
    gate_tolerance: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate must be positive")
        _require(self.ranker_learning_rate > 0, "ranker_learning_rate must be positive")
        _require(self.replay_ratio >= 0, "replay_ratio must not be negative")
        _require(self.reservoir_size >= 0, "reservoir_size must not be negative")
        _require(0 <= self.anchor_strength < 1, "anchor_strength must be in [0, 1)")
        _require(self.num_scored_events >= 1, "num_scored_events must be at least 1")
        _require(self.dedupe_window >= 0, "dedupe_window must not be negative")
        _require(self.max_seen_events >= 1, "max_seen_events must be at least 1")
        _require(self.quality_window >= 1, "quality_window must be at least 1")
        _require(self.popularity_window >= 1, "popularity_window must be at least 1")
        _require(self.gate_every >= 1, "gate_every must be at least 1")
        _require(self.gate_window >= 1, "gate_window must be at least 1")
        _require(self.gate_tolerance >= 0, "gate_tolerance must not be negative")
        _require(self.seed >= 0, "seed must not be negative")
