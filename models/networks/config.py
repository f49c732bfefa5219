"""The settings of the networks.

One default serves every data set; the sizes that a data set decides (the width of its content embeddings) are
fitted, not set.
"""

from dataclasses import dataclass

from models.checks import require

TRUNKS = ("softmax", "hstu")
_MAX_WIDTH = 16_384


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. `content_dim` is the width of the content embeddings it was made for.

    At most `num_identities` items have a vector of their own (`models.networks.item_identities`); training
    takes no more slots than its catalogue needs. The ranker has its own, narrower trunk of one layer and
    `ranker_dim`. `dropout` is the trunk's, `decoder_dropout` the decoder's, whose feed-forward is
    `decoder_ffn_ratio` times as wide as the model: a search runs it for every prefix. `trunk` is "softmax"
    (attention with ALiBi distances and a feed-forward, `models.networks.softmax_trunk`) or "hstu"
    (`models.networks.hstu_trunk`).
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
        require(self.trunk in TRUNKS, f"trunk must be one of {', '.join(TRUNKS)}")
        require(1 <= self.num_levels <= 8, "num_levels must be 1 to 8")
        require(2 <= self.codebook_size <= 4096, "codebook_size must be 2 to 4096")
        require(1 <= self.num_layers <= 64, "num_layers must be 1 to 64")
        for name in ("content_dim", "d_model", "num_heads", "ranker_dim"):
            require(1 <= getattr(self, name) <= _MAX_WIDTH, f"{name} must be 1 to {_MAX_WIDTH}")
        require(self.d_model % self.num_heads == 0, "d_model must be a multiple of num_heads")
        require(self.ranker_dim % self.num_heads == 0, "ranker_dim must be a multiple of num_heads")
        require(self.max_history >= 1, "max_history must be at least 1")
        require(self.num_identities >= 0, "num_identities must not be negative")
        require(1 <= self.decoder_ffn_ratio <= 8, "decoder_ffn_ratio must be 1 to 8")
        for name in ("dropout", "decoder_dropout", "identity_dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1)")
