"""What a trunk keeps of a history, so that one more event costs one position and not all of them.

Owns the layout, the padding and the joining of users. Does not know how keys and values come about.

Shapes: B users, T history, H heads, E width of a head, Z blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class TrunkCache:
    """What B histories leave behind for the events that follow: keys and values of every block.

    `key_ZBHTE` and `value_ZBHTE` right-padded, in the dtype that matrix products ran in (float32, or bfloat16
    where that is faster); `time_ms_BT` and `length_B` int64.
    """

    key_ZBHTE: Tensor
    value_ZBHTE: Tensor
    time_ms_BT: Tensor
    length_B: Tensor

    def to(self, dtype: torch.dtype) -> "TrunkCache":
        """The same histories, keys and values in `dtype`."""
        return replace(self, key_ZBHTE=self.key_ZBHTE.to(dtype), value_ZBHTE=self.value_ZBHTE.to(dtype))

    def select(self, index_B: Tensor) -> "TrunkCache":
        """The histories at these positions (int64 [B]), without padding that none of them needs."""
        length_B = self.length_B[index_B]
        width = int(length_B.amax()) if len(length_B) else 0
        return TrunkCache(
            key_ZBHTE=self.key_ZBHTE[:, index_B, :, :width],
            value_ZBHTE=self.value_ZBHTE[:, index_B, :, :width],
            time_ms_BT=self.time_ms_BT[index_B, :width],
            length_B=length_B,
        )

    @classmethod
    def cat(cls, parts: Sequence["TrunkCache"]) -> "TrunkCache":
        """The histories of all parts, one after the other, padded to the longest."""
        width = max(part.time_ms_BT.shape[1] for part in parts)

        def joined(name: str, dim: int, batch_dim: int) -> Tensor:
            padded = [_padded(getattr(part, name), width, dim) for part in parts]
            return padded[0] if len(padded) == 1 else torch.cat(padded, dim=batch_dim)

        return cls(
            key_ZBHTE=joined("key_ZBHTE", 3, 1),
            value_ZBHTE=joined("value_ZBHTE", 3, 1),
            time_ms_BT=joined("time_ms_BT", 1, 0),
            length_B=torch.cat([part.length_B for part in parts]),
        )

    def appended(self, key_ZBHE: Tensor, value_ZBHE: Tensor, time_ms_B: Tensor) -> "TrunkCache":
        """One more position for each history, at `time_ms_B` (int64); keys and values of the kept dtype."""
        width = max(self.time_ms_BT.shape[1], int(self.length_B.amax()) + 1)
        batch_B = torch.arange(len(self.length_B), device=self.length_B.device)

        def written(old: Tensor, dim: int, new: Tensor) -> Tensor:
            buffer = _padded(old, width, dim)
            buffer = buffer.clone() if buffer is old else buffer
            if dim == 1:
                buffer[batch_B, self.length_B] = new
            else:
                # advanced indices apart from each other move to the front: [B, Z, H, E]
                buffer[:, batch_B, :, self.length_B] = new.transpose(0, 1)
            return buffer

        return TrunkCache(
            key_ZBHTE=written(self.key_ZBHTE, 3, key_ZBHE),
            value_ZBHTE=written(self.value_ZBHTE, 3, value_ZBHE),
            time_ms_BT=written(self.time_ms_BT, 1, time_ms_B),
            length_B=self.length_B + 1,
        )


def _padded(tensor: Tensor, width: int, dim: int) -> Tensor:
    missing = width - tensor.shape[dim]
    if missing <= 0:
        return tensor
    padding = [0, 0] * (tensor.dim() - 1 - dim) + [0, missing]
    return functional.pad(tensor, padding)
