"""The trunks by the names that settings give them."""

from collections.abc import Callable

from models.networks.base import Trunk
from models.networks.config import ModelConfig
from models.networks.hstu_trunk import HstuTrunk
from models.networks.softmax_trunk import SoftmaxTrunk

_TRUNKS: dict[str, Callable[[int, int, int, float], Trunk]] = {"softmax": SoftmaxTrunk, "hstu": HstuTrunk}


def make_trunk(config: ModelConfig) -> Trunk:
    """The untrained trunk that the settings name."""
    return _TRUNKS[config.trunk](config.d_model, config.num_layers, config.num_heads, config.dropout)
