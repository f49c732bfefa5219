"""The softmax trunk's weights as its compiled form takes them (`models.kernels.trunk_cpu`), and the calls.

Shapes: B histories, T positions, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.kernels.shares import in_shares
from models.kernels.trunk_cpu import Cached, TrunkArrays, extend_histories, prefill_histories
from models.networks.affine import affine, contiguous
from models.networks.base import Trunk
from models.networks.softmax_trunk import SoftmaxTrunk
from models.networks.trunk_cache import TrunkCache

# Fewer histories are not worth a thread of their own, nor fewer events.
_MIN_PREFILLED, _MIN_EXTENDED = 4, 16


class CompiledTrunk:
    """A frozen reading of one trunk, float32: later changes of its weights do not show.

    A `models.networks.base.StatefulTrunk` that answers as the trunk does, within float32's rounding.
    """

    def __init__(self, trunk: SoftmaxTrunk) -> None:
        self._weights = _arrays(trunk)

    def prefill(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> tuple[Tensor, TrunkCache]:
        """The state after the last event of each history, float32 [B, D], and the cache for `extend`.

        As many threads as torch may use share many histories.
        """
        num, longest = len(length_B), int(length_B.amax()) if len(length_B) else 0
        x_XD = contiguous(x_BTD[torch.arange(x_BTD.shape[1]) < length_B[:, None]])
        lengths = length_B.contiguous().numpy()
        end_B = np.cumsum(lengths, dtype=np.int64)
        found = self._blank(num, longest)

        def fill(begin: int, end: int) -> None:
            first, last = (0 if place == 0 else end_B[place - 1] for place in (begin, end))
            prefill_histories(x_XD[first:last], lengths[begin:end], begin, found, self._weights)

        in_shares(fill, num, _MIN_PREFILLED)
        return _cached(found, time_ms_BT[:, :longest], length_B)

    def extend(self, cache: TrunkCache, x_BD: Tensor, time_ms_B: Tensor) -> tuple[Tensor, TrunkCache]:
        """One more event for each history: the state after it, float32 [B, D], and the longer float32 cache.

        `cache` may be of any floating dtype and stays as it was.
        """
        kept = cache.time_ms_BT.shape[1]
        num, longest = len(x_BD), max(kept, int(cache.length_B.amax()) + 1)
        found = self._blank(num, longest)
        found.key_ZBHTE[:, :, :, :kept] = cache.key_ZBHTE.float().numpy()
        found.value_ZBHTE[:, :, :, :kept] = cache.value_ZBHTE.float().numpy()
        x, lengths = contiguous(x_BD), cache.length_B.contiguous().numpy()

        def fill(begin: int, end: int) -> None:
            extend_histories(x[begin:end], lengths[begin:end], begin, found, self._weights)

        in_shares(fill, num, _MIN_EXTENDED)
        time_ms_BT = torch.zeros((num, longest), dtype=torch.int64)
        time_ms_BT[:, :kept] = cache.time_ms_BT
        time_ms_BT[torch.arange(num), cache.length_B] = time_ms_B
        return _cached(found, time_ms_BT, cache.length_B + 1)

    def _blank(self, num: int, longest: int) -> Cached:
        num_blocks, width, _ = self._weights.seen_ZDD.shape
        num_heads = len(self._weights.slope_H)
        shape = (num_blocks, num, num_heads, longest, width // num_heads)
        return Cached(
            np.zeros((num, width), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        )


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
    stacked = [contiguous(torch.stack(parts)) for parts in zip(*layers, strict=True)]
    rest = map(contiguous, (trunk.norm.weight, trunk.norm.bias, trunk.slope_H))
    return TrunkArrays(*stacked, *rest)
