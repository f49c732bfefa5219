"""The user model: causal attention over histories, one position per event.

Owns the relative position bias (ALiBi), the M-FALCON mask that lets candidates see a history and not each
other, and the keys and values that let a history be extended. Knows nothing of items, codes or actions:
positions come in as vectors and leave as vectors.

Shapes: B batch, T history, M candidates, D width, H heads, E width of a head, Z blocks.
"""

import torch
from torch import Tensor, nn

from models.networks.blocks import Block, ByteDropout, zero_past_end
from models.networks.trunk_cache import TrunkCache

# Biases are kept for histories up to a multiple of this.
_BIAS_ROOM = 64


class SoftmaxTrunk(nn.Module):
    """Causal blocks over event positions, with ALiBi distances (Press et al., 2022) for order.

    A `models.networks.base.Trunk`: shapes and dtypes are given there. ALiBi has no table of positions, so a
    history longer than those of the training is no special case. Times are part of the interface for the
    other trunk (`models/networks/hstu_trunk.py`); this one ignores them.
    """

    slope_H: Tensor
    causal_HTT: Tensor
    append_PHT: Tensor

    def __init__(self, d_model: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.input_dropout = ByteDropout(dropout)
        blocks = [Block(d_model, num_heads, dropout) for _ in range(num_layers)]
        self.blocks: list[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(d_model)
        slopes = 2.0 ** (-8.0 * torch.arange(1, num_heads + 1) / num_heads)
        self.register_buffer("slope_H", slopes, persistent=False)
        # what the two functions below slice, with room for longer histories than there were
        self.register_buffer("causal_HTT", torch.empty(num_heads, 0, 0), persistent=False)
        self.register_buffer("append_PHT", torch.empty(1, num_heads, 0), persistent=False)

    def _causal_bias(self, width: int) -> Tensor:
        """[H, T, T]: -slope x distance to earlier positions, -inf for later ones."""
        self._make_room(width)
        return self.causal_HTT[:, :width, :width]

    def _append_bias(self, position_B: Tensor, width: int) -> Tensor:
        """[B, H, T]: from an event at `position_B` <= T to those before it, -inf to the others."""
        self._make_room(width)
        return self.append_PHT[:, :, :width][position_B]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make_room(self, width: int) -> None:
        """Biases of histories up to `width`; they are few operations, but of every request."""
        if self.causal_HTT.shape[1] >= width:
            return
        room = -(-width // _BIAS_ROOM) * _BIAS_ROOM
        position_P = torch.arange(room + 1, device=self.slope_H.device)
        distance_PT = position_P[:, None] - position_P[None, :-1]
        bias_HPT = -self.slope_H[:, None, None] * distance_PT
        self.append_PHT = bias_HPT.masked_fill(distance_PT <= 0, -torch.inf).transpose(0, 1).contiguous()
        self.causal_HTT = bias_HPT[:, :-1].masked_fill(distance_PT[:-1] < 0, -torch.inf)

    def forward(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> Tensor:
        """The state after each event, floating [B, T, D]; zero past a history's length.

        `x_BTD` is right-padded; what is finite in its padding has no influence.
        """
        bias_HTT = self._causal_bias(x_BTD.shape[1])
        state_BTD = self.input_dropout(x_BTD)
        for block in self.blocks:
            state_BTD = block(state_BTD, bias_HTT)
        return zero_past_end(self.norm(state_BTD), length_B)

    def states_at(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        """The states of the positions that `wanted_BT` (bool) marks, floating [X, D].

        The last block looks from all positions, but finishes those alone: its feed-forward is most of it.
        """
        bias_HTT = self._causal_bias(x_BTD.shape[1])
        state_BTD = self.input_dropout(x_BTD)
        for block in self.blocks[:-1]:
            state_BTD = block(state_BTD, bias_HTT)
        last = self.blocks[-1]
        seen_BTD = last.attention.look(*last.project(state_BTD), bias_HTT)
        normed: Tensor = self.norm(last.finish(state_BTD[wanted_BT], seen_BTD[wanted_BT]))
        return normed

    def forward_candidates(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        time_ms_BT: Tensor,
        candidate_BMD: Tensor,
        candidate_time_ms_B: Tensor,
    ) -> Tensor:
        """The output of each candidate as if it alone were the next event: floating [B, M, D].

        The M-FALCON mask (Zhai et al., 2024, "Actions speak louder than words"): candidates see the whole
        valid history and themselves, never each other, so one pass scores all of them. Equals `forward` on
        the history with one candidate appended. A history may be empty.
        """
        bias_BHT = self._append_bias(length_B, x_BTD.shape[1])
        bias_HTT = self._causal_bias(x_BTD.shape[1])
        x_BTD, out_BMD = self.input_dropout(x_BTD), self.input_dropout(candidate_BMD)
        for depth, block in enumerate(self.blocks):
            projected = block.project(x_BTD)
            out_BMD = block.append(out_BMD, block.project(out_BMD), *projected[1:], bias_BHT)
            if depth + 1 < len(self.blocks):
                x_BTD = block.attend(x_BTD, projected, bias_HTT)
        normed: Tensor = self.norm(out_BMD)
        return normed

    def prefill(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> tuple[Tensor, TrunkCache]:
        """The state after the last event of each history, floating [B, D], and the cache for `extend`; T >=
        1.

        The last block computes that position alone. For an empty history the state means nothing.
        """
        last_B = (length_B - 1).clamp(min=0)
        batch_B = torch.arange(len(length_B), device=length_B.device)
        bias_HTT = self._causal_bias(x_BTD.shape[1])
        keys, values = [], []
        for depth, block in enumerate(self.blocks):
            q, k, v = block.project(x_BTD)
            keys.append(k)
            values.append(v)
            if depth + 1 < len(self.blocks):
                x_BTD = block.attend(x_BTD, (q, k, v), bias_HTT)
        own_q, own_k, own_v = (part[batch_B, :, last_B][:, :, None] for part in (q, k, v))
        own = (own_q, own_k, own_v)
        bias_BHT = self._append_bias(last_B, x_BTD.shape[1])
        state_BMD = block.append(x_BTD[batch_B, last_B][:, None], own, k, v, bias_BHT)
        cache = TrunkCache(
            key_ZBHTE=torch.stack(keys),
            value_ZBHTE=torch.stack(values),
            time_ms_BT=time_ms_BT,
            length_B=length_B,
        )
        return self.norm(state_BMD[:, 0]), cache

    def extend(self, cache: TrunkCache, x_BD: Tensor, time_ms_B: Tensor) -> tuple[Tensor, TrunkCache]:
        """One more event for each history: the state after it, floating [B, D], and the longer cache.

        Equals `prefill` of the longer history (Pope et al., 2022, keys and values kept).
        """
        bias_BHT = self._append_bias(cache.length_B, cache.time_ms_BT.shape[1])
        out_BMD = x_BD[:, None]
        keys, values = [], []
        for block, k, v in zip(self.blocks, cache.key_ZBHTE, cache.value_ZBHTE, strict=True):
            own = block.project(out_BMD)
            keys.append(own[1][:, :, 0])
            values.append(own[2][:, :, 0])
            out_BMD = block.append(out_BMD, own, k, v, bias_BHT)
        longer = cache.appended(torch.stack(keys), torch.stack(values), time_ms_B)
        return self.norm(out_BMD[:, 0]), longer
