"""The user model: causal attention over histories, one position per event.

Owns the blocks, their relative position bias (ALiBi), the M-FALCON mask that lets candidates see a
history and not each other, the keys and values that let a history be extended, and the dropout that is
cheap on a CPU. Knows nothing of items, codes or actions: positions come in as vectors and leave as
vectors.

Shapes: B batch, T history, M candidates, D width, H heads, E width of a head, Z blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.trunk_cache import TrunkCache

FFN_RATIO = 4
_INT64_MIN = -(2**63)
# Biases are kept for histories up to a multiple of this.
_BIAS_ROOM = 64


class ByteDropout(nn.Module):
    """Dropout from one random byte per element: the rate is rounded to 1/256.

    `bernoulli_` draws one 32-bit number and one comparison in double precision for each element and took
    40% of a training step on a CPU; eight decisions out of one 64-bit number take a fifteenth of that.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.num_kept_of_256 = 256 - round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape: itself in evaluation, elements dropped and the rest scaled up in training."""
        if not self.training or self.num_kept_of_256 == 256:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        octets = words.random_(_INT64_MIN, None).view(torch.uint8)[: x.numel()]
        keep = (octets < self.num_kept_of_256).view(x.shape)
        return x * (keep.to(x.dtype) * (256.0 / self.num_kept_of_256))


class Attention(nn.Module):
    """Softmax attention with an additive bias, over positions or from candidates to positions."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(d_model, 3 * d_model)
        self.project_out = nn.Linear(d_model, d_model)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B, H, T, E] of `x` [B, T, D]."""
        batch, width, d_model = x.shape
        split = self.project_in(x).view(batch, width, 3, self.num_heads, d_model // self.num_heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _merge(self, out_BHTE: Tensor) -> Tensor:
        merged: Tensor = self.project_out(out_BHTE.transpose(1, 2).flatten(2))
        return merged

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias_HTT: Tensor) -> Tensor:
        """Each position attends to all, `bias_HTT` (-inf where it must not) being added to the logits."""
        bias = bias_HTT.to(q.dtype).expand(q.shape[0], -1, -1, -1)
        return self._merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def append(self, own: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, bias_BHT: Tensor) -> Tensor:
        """Each candidate attends to T >= 0 positions, with `bias_BHT`, and to itself: [B, M, D]."""
        q_c, k_c, v_c = own
        scale = q_c.shape[-1] ** -0.5
        to_history = (q_c @ k.transpose(2, 3)) * scale + bias_BHT[:, :, None, :]
        to_itself = (q_c * k_c).sum(3, keepdim=True) * scale
        weight = torch.cat([to_history, to_itself], dim=3).softmax(3).to(v.dtype)
        return self._merge(weight[..., :-1] @ v + weight[..., -1:] * v_c)


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a feed-forward `ffn_ratio` times as wide."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, ffn_ratio: int = FFN_RATIO) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, num_heads)
        self.ffn_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, ffn_ratio * d_model), nn.GELU(), nn.Linear(ffn_ratio * d_model, d_model)
        )
        self.dropout = ByteDropout(dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of what this block gets."""
        projected: tuple[Tensor, Tensor, Tensor] = self.attention.project(self.attention_norm(x))
        return projected

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block, its residual included."""
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor) -> Tensor:
        """Positions in, positions out."""
        return self.attend(x_BTD, self.project(x_BTD), bias_HTT)

    def attend(self, x_BTD: Tensor, projected: tuple[Tensor, Tensor, Tensor], bias_HTT: Tensor) -> Tensor:
        """`forward` with the positions' own query, key and value at hand."""
        return self.feed_forward(x_BTD + self.dropout(self.attention(*projected, bias_HTT)))

    def append(
        self,
        candidate_BMD: Tensor,
        own: tuple[Tensor, Tensor, Tensor],
        k: Tensor,
        v: Tensor,
        bias_BHT: Tensor,
    ) -> Tensor:
        """Candidates in, candidates out; `own` is their projection, `k` and `v` are the history's."""
        return self.feed_forward(candidate_BMD + self.dropout(self.attention.append(own, k, v, bias_BHT)))


class Trunk(nn.Module):
    """Causal blocks over event positions, with ALiBi distances (Press et al., 2022) for order.

    ALiBi has no table of positions, so a history longer than those of the training is no special case.
    Times are taken for the sake of the other trunk (`models/hstu.py`); this one leaves them unread.
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
        """The state after each event, [B, T, D]; zero past a history's length.

        `x_BTD` is right-padded; what stands in its padding has no influence.
        """
        bias_HTT = self._causal_bias(x_BTD.shape[1])
        state_BTD = self.input_dropout(x_BTD)
        for block in self.blocks:
            state_BTD = block(state_BTD, bias_HTT)
        valid_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < length_B[:, None]
        normed_BTD: Tensor = self.norm(state_BTD)
        return normed_BTD * valid_BT[:, :, None].to(normed_BTD.dtype)

    def forward_candidates(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        time_ms_BT: Tensor,
        candidate_BMD: Tensor,
        candidate_time_ms_B: Tensor,
    ) -> Tensor:
        """The output of each candidate as if it alone were the next event: [B, M, D].

        The M-FALCON mask (Zhai et al., 2024, "Actions speak louder than words"): candidates see the
        whole valid history and themselves, never each other, so one pass scores all of them. Equals
        `forward` on the history with one candidate appended. A history may be empty.
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
        """The state after the last event of each history, [B, D], and what `extend` goes on from.

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
        """One more event for each history: the state after it, [B, D], and the longer cache.

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
