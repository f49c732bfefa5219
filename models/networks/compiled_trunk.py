"""The softmax trunk's weights as its compiled form takes them (`models.kernels.trunk_cpu`), and the calls.

Shapes: B histories, T positions, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.kernels.trunk_cpu import Cached, TrunkArrays, extend_histories, prefill_histories
from models.networks.affine import affine, contiguous
from models.networks.base import Trunk
from models.networks.softmax_trunk import SoftmaxTrunk
from models.networks.trunk_cache import TrunkCache


class CompiledTrunk:
    """A frozen reading of one trunk, float32: later changes of its weights do not show.

    A `models.networks.base.StatefulTrunk` that answers as the trunk does, within float32's rounding.
    """

    def __init__(self, trunk: SoftmaxTrunk) -> None:
        self._weights = _arrays(trunk)

    def prefill(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> tuple[Tensor, TrunkCache]:
        """The state after the last event of each history, float32 [B, D], and the cache for `extend`."""
        valid_BT = torch.arange(x_BTD.shape[1]) < length_B[:, None]
        found = prefill_histories(contiguous(x_BTD[valid_BT]), length_B.contiguous().numpy(), self._weights)
        return _cached(found, time_ms_BT[:, : found.key_ZBHTE.shape[3]], length_B)

    def extend(self, cache: TrunkCache, x_BD: Tensor, time_ms_B: Tensor) -> tuple[Tensor, TrunkCache]:
        """One more event for each history: the state after it, float32 [B, D], and the longer float32 cache.

        `cache` may be of any floating dtype and stays as it was.
        """
        found = extend_histories(
            contiguous(x_BD),
            contiguous(cache.key_ZBHTE),
            contiguous(cache.value_ZBHTE),
            cache.length_B.contiguous().numpy(),
            self._weights,
        )
        missing = found.key_ZBHTE.shape[3] - cache.time_ms_BT.shape[1]
        longer_BT = nn.functional.pad(cache.time_ms_BT, [0, missing])
        if not missing:
            longer_BT = longer_BT.clone()
        longer_BT[torch.arange(len(time_ms_B)), cache.length_B] = time_ms_B
        return _cached(found, longer_BT, cache.length_B + 1)


def compiled_trunk(trunk: Trunk) -> CompiledTrunk | None:
    """The trunk's compiled form; None where it has none: it is not `softmax`."""
    return CompiledTrunk(trunk) if isinstance(trunk, SoftmaxTrunk) else None


def _cached(found: Cached, time_ms_BT: Tensor, length_B: Tensor) -> tuple[Tensor, TrunkCache]:
    return torch.from_numpy(found.state_BD), TrunkCache(
        key_ZBHTE=torch.from_numpy(found.key_ZBHTE),
        value_ZBHTE=torch.from_numpy(found.value_ZBHTE),
        time_ms_BT=time_ms_BT,
        length_B=length_B,
    )


@torch.no_grad()
def _arrays(trunk: SoftmaxTrunk) -> TrunkArrays:
    layers = []
    for block in trunk.blocks:
        wide, _, narrow = block.ffn
        assert isinstance(wide, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        layers.append(
            [
                *affine(block.attention.project_in, block.attention_norm),
                *affine(block.attention.project_out),
                *affine(wide, block.ffn_norm),
                *affine(narrow),
            ]
        )
    stacked = [np.stack([contiguous(part) for part in parts]) for parts in zip(*layers, strict=True)]
    rest = map(contiguous, (trunk.norm.weight, trunk.norm.bias, trunk.slope_H))
    return TrunkArrays(*stacked, *rest)
