"""The parts that trunks and the depth decoder are built of: attention, a block, dropout that is cheap on a
CPU.

Knows positions as vectors, and no history, candidate or cache.

Shapes: B batch, T history, M candidates, D width, H heads, E width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FFN_RATIO = 4
_INT64_MIN = -(2**63)


class ByteDropout(nn.Module):
    """Dropout from one random byte per element: the rate is rounded to 1/256.

    `bernoulli_` draws one 32-bit number and one comparison in double precision for each element and took
    40% of a training step on a CPU; eight decisions out of one 64-bit number take a fifteenth of that.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.num_kept_of_256 = 256 - round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (floating, any shape) in evaluation; in training, elements dropped and the rest scaled up."""
        if not self.training or self.num_kept_of_256 == 256:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        octets = words.random_(_INT64_MIN, None).view(torch.uint8)[: x.numel()]
        keep = (octets < self.num_kept_of_256).view(x.shape)
        return x * (keep.to(x.dtype) * (256.0 / self.num_kept_of_256))


class Attention(nn.Module):
    """Softmax attention with an additive bias, over positions or from candidates to positions.

    All tensors are floating; outputs have the dtype that the projections run in.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(d_model, 3 * d_model)
        self.project_out = nn.Linear(d_model, d_model)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, T, E], of `x` [B, T, D]; T may be M candidates."""
        batch, width, d_model = x.shape
        split = self.project_in(x).view(batch, width, 3, self.num_heads, d_model // self.num_heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _merge(self, out_BHTE: Tensor) -> Tensor:
        merged: Tensor = self.project_out(out_BHTE.transpose(1, 2).flatten(2))
        return merged

    def look(self, q: Tensor, k: Tensor, v: Tensor, bias_HTT: Tensor) -> Tensor:
        """What each position sees of all, [B, T, D], before the output's projection: `q`, `k`, `v` [B, H, T,
        E], `bias_HTT` (-inf where a position must not look) is added to the logits."""
        if q.shape[2] == 1:
            # a position that is alone sees itself with weight 1; torch would multiply a view of all three
            # projections by frozen weights copied for each row: a fifth of a second for 1,280
            return v.transpose(1, 2).flatten(2).contiguous()
        if q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
            # torch 2.13's fused kernel goes back 3 to 13 times as slowly as these lines in bfloat16
            weight_BHTT = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias_HTT).softmax(3)
            seen_BHTE = weight_BHTT.to(v.dtype) @ v
        else:
            bias = bias_HTT.to(q.dtype).expand(q.shape[0], -1, -1, -1)
            seen_BHTE = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        seen_BTD: Tensor = seen_BHTE.transpose(1, 2).flatten(2)
        return seen_BTD

    def append(self, own: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, bias_BHT: Tensor) -> Tensor:
        """Each candidate attends to T >= 0 positions and to itself: [B, M, D].

        `own` are the candidates' query, key and value [B, H, M, E], `k` and `v` those of the positions [B, H,
        T, E]; `bias_BHT` is added to the logits of the positions.
        """
        q_c, k_c, v_c = own
        scale = q_c.shape[-1] ** -0.5
        to_history = (q_c @ k.transpose(2, 3)) * scale + bias_BHT[:, :, None, :]
        to_itself = (q_c * k_c).sum(3, keepdim=True) * scale
        weight = torch.cat([to_history, to_itself], dim=3).softmax(3).to(v.dtype)
        return self._merge(weight[..., :-1] @ v + weight[..., -1:] * v_c)


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a feed-forward `ffn_ratio` times as wide.

    All tensors are floating; the residual stream keeps the dtype of the input.
    """

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
        """Query, key and value [B, H, T, E] of the normed input `x` [B, T, D]."""
        projected: tuple[Tensor, Tensor, Tensor] = self.attention.project(self.attention_norm(x))
        return projected

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block with its residual; `x` [..., D], and so is the result."""
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor) -> Tensor:
        """Positions [B, T, D] in, positions [B, T, D] out; `bias_HTT` is added to the attention logits."""
        return self.attend(x_BTD, self.project(x_BTD), bias_HTT)

    def attend(self, x_BTD: Tensor, projected: tuple[Tensor, Tensor, Tensor], bias_HTT: Tensor) -> Tensor:
        """`forward` for a caller that has `project(x_BTD)` already: [B, T, D]."""
        return self.finish(x_BTD, self.attention.look(*projected, bias_HTT))

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """The block's output for inputs `x` that saw `seen`, as `Attention.look` returns it; all [..., D]."""
        return self.feed_forward(x + self.dropout(self.attention.project_out(seen)))

    def append(
        self,
        candidate_BMD: Tensor,
        own: tuple[Tensor, Tensor, Tensor],
        k: Tensor,
        v: Tensor,
        bias_BHT: Tensor,
    ) -> Tensor:
        """Candidates [B, M, D] in, candidates [B, M, D] out; `own` is their projection, `k` and `v` [B, H, T,
        E] are the history's."""
        return self.feed_forward(candidate_BMD + self.dropout(self.attention.append(own, k, v, bias_BHT)))


def zero_past_end(state_BTD: Tensor, length_B: Tensor) -> Tensor:
    """The states with zeros from each history's end on, in their dtype; `length_B` int64."""
    valid_BT = torch.arange(state_BTD.shape[1], device=state_BTD.device) < length_B[:, None]
    return state_BTD * valid_BT[:, :, None].to(state_BTD.dtype)
