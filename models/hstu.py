"""The user model as HSTU: SiLU attention with learned relative position and time biases, gated, no FFN.

Owns `hstu_attention` (the formula that every fused kernel is compared with), the bias tables and the
blocks. The same methods as `models.trunk.Trunk`; knows nothing of items, codes or actions.

Zhai et al., 2024, "Actions speak louder than words", eq. 1-4; with x the input of a layer:

    U, Q, K, V = split(SiLU(Linear(norm(x))))
    A V        = hstu_attention(Q, K, V, rab, mask)
    y          = x + Linear(dropout(norm(A V) * U))

Shapes: B batch, T history, S keys, M candidates, D width, H heads, E width of a head, Z layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.trunk import ByteDropout
from models.trunk_cache import TrunkCache

NUM_DISTANCES = 64
NUM_TIME_BUCKETS = 48
NORM_EPS = 1e-6


def hstu_attention(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Pointwise attention, [B, H, T, E]; the reference for fused kernels.

        out[b,h,i] = sum_j  mask[b,i,j] * SiLU(q[b,h,i] . k[b,h,j] + bias[b,h,i,j]) * v[b,h,j]  /  N[b,i]
        N[b,i]     = max(1, sum_j mask[b,i,j]),          SiLU(s) = s / (1 + exp(-s))

    `bias` floating, broadcastable to [B, H, T, S]; `mask` bool, the same with H = 1: True where query
    `i` sees key `j`. No 1/sqrt(E), as in the paper. A query that sees nothing gives zero.

    The paper divides by the longest length. Here N is the number of keys seen: it depends on nothing but
    the query's own past, so neither padding nor the rest of a batch changes an answer, and a candidate
    gets what the appended event would. The layer norm over A V drops any positive factor per position, so
    the two differ by its epsilon alone (NORM_EPS): with initial weights at width 256 the variance of A V is
    5e-2 at the first and 1e-3 at the 50th event; over a longest length of 1,000, 5e-8 and 3e-6.

    For one head, q.k = [[1, -], [0, 2]], no bias and the causal mask: out[0] = SiLU(1) v[0] = .731 v[0],
    out[1] = (SiLU(0) v[0] + SiLU(2) v[1]) / 2 = .881 v[1].
    """
    score_BHTS = q_BHTE @ k_BHSE.transpose(2, 3)
    score_BHTS = score_BHTS + bias.to(score_BHTS.dtype)
    share = mask.to(score_BHTS.dtype) / mask.sum(-1, keepdim=True).clamp(min=1).to(score_BHTS.dtype)
    return (functional.silu(score_BHTS) * share) @ v_BHSE


def time_bucket(elapsed_ms: Tensor) -> Tensor:
    """The number of binary digits of `elapsed_ms` (int64, any shape), int64 below NUM_TIME_BUCKETS.

    0 ms (or a step back in time) -> 0, 1 ms -> 1, 2-3 ms -> 2, 4-7 ms -> 3, one day -> 27, one year -> 35.
    """
    digits: Tensor = torch.frexp(elapsed_ms.clamp(min=0).double()).exponent
    return digits.clamp(max=NUM_TIME_BUCKETS - 1).long()


class RelativeBias(nn.Module):
    """rab^{p,t}: one learned number per layer, head and distance, plus one per time bucket.

    Distances are in events; those from NUM_DISTANCES - 1 on share the last entry. Both tables are kept
    with all layers' heads side by side, so that one lookup serves the whole trunk.
    """

    def __init__(self, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.num_layers, self.num_heads = num_layers, num_heads
        self.position_table = nn.Parameter(torch.randn(NUM_DISTANCES, num_layers * num_heads) * 0.02)
        self.time_table = nn.Parameter(torch.randn(NUM_TIME_BUCKETS, num_layers * num_heads) * 0.02)

    def forward(self, distance: Tensor, elapsed_ms: Tensor) -> Tensor:
        """[Z, B, H, T, S] of int64 `distance` [1 or B, T, S] and `elapsed_ms` [B, T, S]; below 0 is 0."""
        position = functional.embedding(distance.clamp(0, NUM_DISTANCES - 1), self.position_table)
        bias = position + functional.embedding(time_bucket(elapsed_ms), self.time_table)
        split = bias.view(*bias.shape[:3], self.num_layers, self.num_heads)
        return split.permute(3, 0, 4, 1, 2).contiguous()


class HstuBlock(nn.Module):
    """One HSTU layer. Its two norms have no weights of their own: the projections after them do."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(d_model, 4 * d_model)  # rows: gate, query, key, value
        self.project_out = nn.Linear(d_model, d_model)
        self.dropout = ByteDropout(dropout)

    def _project(self, x: Tensor, begin: int, end: int) -> tuple[Tensor, ...]:
        """Parts `begin` to `end` of (gate, query, key, value) of `x` [B, T, D], each [B, H, T, E]."""
        batch, width, d_model = x.shape
        normed = functional.layer_norm(x, (d_model,), eps=NORM_EPS)
        weight: Tensor = self.project_in.weight
        bias: Tensor = self.project_in.bias
        if end - begin < 4:
            rows = slice(begin * d_model, end * d_model)
            weight, bias = weight[rows], bias[rows]
        out = functional.silu(functional.linear(normed, weight, bias))
        split = out.view(batch, width, end - begin, self.num_heads, d_model // self.num_heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def _finish(self, x: Tensor, attended_BHTE: Tensor, gate_BHTE: Tensor) -> Tensor:
        merged = attended_BHTE.transpose(1, 2).flatten(2)
        gate = gate_BHTE.transpose(1, 2).flatten(2)
        normed = functional.layer_norm(merged, merged.shape[2:], eps=NORM_EPS)
        out: Tensor = x + self.project_out(self.dropout(normed * gate))
        return out

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of each position, each [B, H, T, E]."""
        k_BHTE, v_BHTE = self._project(x_BTD, 2, 4)
        return k_BHTE, v_BHTE

    def forward(self, x_BTD: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions in; positions, and the keys and values of those that came in, out."""
        gate, q_BHTE, k_BHTE, v_BHTE = self._project(x_BTD, 0, 4)
        attended_BHTE = hstu_attention(q_BHTE, k_BHTE, v_BHTE, bias, mask)
        return self._finish(x_BTD, attended_BHTE, gate), k_BHTE, v_BHTE

    def append(
        self, x_BMD: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, bias_BH1S: Tensor, length_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each candidate sees the first `length_B` keys and, with the last of S = T + 1 biases, itself.

        Candidates in; candidates out, and their own keys and values [B, H, M, E].
        """
        gate, q, k_own, v_own = self._project(x_BMD, 0, 4)
        position_T = torch.arange(k_BHTE.shape[2], device=length_B.device)
        num_seen_B = length_B[:, None, None, None] + 1
        share = ((position_T < length_B[:, None])[:, None, None] / num_seen_B).to(q.dtype)
        bias_BH1S = bias_BH1S.to(q.dtype)
        score = q @ k_BHTE.transpose(2, 3) + bias_BH1S[..., :-1]
        own = (q * k_own).sum(3, keepdim=True) + bias_BH1S[..., -1:]
        attended = (functional.silu(score) * share) @ v_BHTE
        attended = attended + functional.silu(own) * v_own / num_seen_B.to(q.dtype)
        return self._finish(x_BMD, attended, gate), k_own, v_own


class HstuTrunk(nn.Module):
    """HSTU blocks over event positions; the interface of `models.trunk.Trunk`.

    Times are int64 milliseconds; the bias of a pair is that of the time from the key to the query, so a
    constant added to all times of a history changes nothing.
    """

    def __init__(self, d_model: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.input_dropout = ByteDropout(dropout)
        self.bias = RelativeBias(num_layers, num_heads)
        blocks = [HstuBlock(d_model, num_heads, dropout) for _ in range(num_layers)]
        self.blocks: list[HstuBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(d_model)

    def _pairs(self, time_ms_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Bias [Z, B, H, T, T] and causal mask [T, T] of all pairs of positions."""
        position_T = torch.arange(time_ms_BT.shape[1], device=time_ms_BT.device)
        distance_TT = position_T[:, None] - position_T
        bias = self.bias(distance_TT[None], time_ms_BT[:, :, None] - time_ms_BT[:, None, :])
        return bias, distance_TT >= 0

    def _append_bias(self, length_B: Tensor, now_ms_B: Tensor, time_ms_BT: Tensor) -> Tensor:
        """Bias [Z, B, H, 1, T + 1] of a next event at `now_ms_B` with those before it and, last, itself."""
        distance_BT = length_B[:, None] - torch.arange(time_ms_BT.shape[1], device=time_ms_BT.device)
        elapsed_BT = now_ms_B[:, None] - time_ms_BT
        bias: Tensor = self.bias(
            functional.pad(distance_BT, (0, 1))[:, None], functional.pad(elapsed_BT, (0, 1))[:, None]
        )
        return bias

    def forward(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> Tensor:
        """The state after each event, [B, T, D]; zero past a history's length.

        `x_BTD` is right-padded; what stands in its padding has no influence.
        """
        bias_ZBHTT, mask_TT = self._pairs(time_ms_BT)
        state_BTD = self.input_dropout(x_BTD)
        for block, bias in zip(self.blocks, bias_ZBHTT, strict=True):
            state_BTD, _, _ = block(state_BTD, bias, mask_TT)
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
        """The output of each candidate as if it alone were the next event, at its request's time: [B, M, D].

        The M-FALCON mask: candidates see the whole valid history and themselves, never each other. Equals
        `forward` on the history with one candidate appended. A history may be empty.
        """
        bias_append = self._append_bias(length_B, candidate_time_ms_B, time_ms_BT)
        bias_pair, mask_TT = self._pairs(time_ms_BT)
        x_BTD, out_BMD = self.input_dropout(x_BTD), self.input_dropout(candidate_BMD)
        for depth, block in enumerate(self.blocks):
            if depth + 1 < len(self.blocks):
                x_BTD, k, v = block(x_BTD, bias_pair[depth], mask_TT)
            else:
                k, v = block.keys_and_values(x_BTD)
            out_BMD, _, _ = block.append(out_BMD, k, v, bias_append[depth], length_B)
        normed: Tensor = self.norm(out_BMD)
        return normed

    def prefill(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> tuple[Tensor, TrunkCache]:
        """The state after the last event of each history, [B, D], and what `extend` goes on from; T >= 1.

        The last layer computes that position alone. For an empty history the state means nothing.
        """
        user_B, last_B = torch.arange(len(length_B), device=length_B.device), (length_B - 1).clamp(min=0)
        bias_pair, mask_TT = self._pairs(time_ms_BT)
        keys, values = [], []
        for depth, block in enumerate(self.blocks[:-1]):
            x_BTD, k, v = block(x_BTD, bias_pair[depth], mask_TT)
            keys.append(k)
            values.append(v)
        k, v = self.blocks[-1].keys_and_values(x_BTD)
        bias_append = self._append_bias(last_B, time_ms_BT[user_B, last_B], time_ms_BT)
        state_B1D, _, _ = self.blocks[-1].append(
            x_BTD[user_B, last_B][:, None], k, v, bias_append[-1], last_B
        )
        cache = TrunkCache(
            key_ZBHTE=torch.stack([*keys, k]),
            value_ZBHTE=torch.stack([*values, v]),
            time_ms_BT=time_ms_BT,
            length_B=length_B,
        )
        return self.norm(state_B1D[:, 0]), cache

    def extend(self, cache: TrunkCache, x_BD: Tensor, time_ms_B: Tensor) -> tuple[Tensor, TrunkCache]:
        """One more event for each history: the state after it, [B, D], and the longer cache.

        Equals `prefill` of the longer histories; `cache` stays as it was.
        """
        bias_append = self._append_bias(cache.length_B, time_ms_B, cache.time_ms_BT)
        state_B1D = x_BD[:, None]
        keys, values = [], []
        for block, k, v, bias in zip(
            self.blocks, cache.key_ZBHTE, cache.value_ZBHTE, bias_append, strict=True
        ):
            state_B1D, k_own, v_own = block.append(state_B1D, k, v, bias, cache.length_B)
            keys.append(k_own[:, :, 0])
            values.append(v_own[:, :, 0])
        longer = cache.appended(torch.stack(keys), torch.stack(values), time_ms_B)
        return self.norm(state_B1D[:, 0]), longer
