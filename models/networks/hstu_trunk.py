"""The user model as HSTU: SiLU attention with learned relative position and time biases, gated, no FFN.

Owns the bias tables and the blocks; the formula of the attention is `models/kernels/hstu_formula.py`'s. It is
a `models.networks.base.Trunk`; knows nothing of items, codes or actions.

Zhai et al., 2024, "Actions speak louder than words", eq. 1-4; with x the input of a layer:

    U, Q, K, V = split(SiLU(Linear(norm(x))))
    A V        = hstu_attention(Q, K, V, rab, mask)
    y          = x + Linear(dropout(norm(A V) * U))

Shapes: B batch, T history, S keys, M candidates, D width, H heads, E width of a head, Z layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.hstu_formula import NUM_DISTANCES, NUM_TIME_BUCKETS, hstu_attention, time_bucket
from models.networks.blocks import ByteDropout, zero_past_end
from models.networks.trunk_cache import TrunkCache

NORM_EPS = 1e-6


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
        """Float32 [Z, B, H, T, S] of int64 `distance` [1 or B, T, S], in events, and int64 `elapsed_ms` [B,
        T, S]; below 0 counts as 0."""
        position = functional.embedding(distance.clamp(0, NUM_DISTANCES - 1), self.position_table)
        bias = position + functional.embedding(time_bucket(elapsed_ms), self.time_table)
        split = bias.view(*bias.shape[:3], self.num_layers, self.num_heads)
        return split.permute(3, 0, 4, 1, 2).contiguous()


class HstuBlock(nn.Module):
    """One HSTU layer. Its two norms have no weights of their own: the projections after them do.

    All tensors are floating, except masks (bool) and lengths (int64).
    """

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
        """Key and value of each position, each floating [B, H, T, E]."""
        k_BHTE, v_BHTE = self._project(x_BTD, 2, 4)
        return k_BHTE, v_BHTE

    def forward(self, x_BTD: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions [B, T, D] in; positions [B, T, D] out, with the keys and values [B, H, T, E] of those
        that came in.

        `bias` [B, H, T, T] is added to the scores; `mask` bool [T, T] is true where a position may look.
        """
        gate, q_BHTE, k_BHTE, v_BHTE = self._project(x_BTD, 0, 4)
        attended_BHTE = hstu_attention(q_BHTE, k_BHTE, v_BHTE, bias, mask)
        return self._finish(x_BTD, attended_BHTE, gate), k_BHTE, v_BHTE

    def append(
        self, x_BMD: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, bias_BH1S: Tensor, length_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each candidate sees the first `length_B` (int64) keys and, with the last of S = T + 1 biases,
        itself.

        Candidates [B, M, D] in; candidates [B, M, D] out, with their own keys and values, floating [B, H, M,
        E].
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
    """HSTU blocks over event positions; a `models.networks.base.Trunk`.

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
        """The state after each event, floating [B, T, D]; zero past a history's length (int64).

        `x_BTD` is right-padded; what is finite in its padding has no influence.
        """
        bias_ZBHTT, mask_TT = self._pairs(time_ms_BT)
        state_BTD = self.input_dropout(x_BTD)
        for block, bias in zip(self.blocks, bias_ZBHTT, strict=True):
            state_BTD, _, _ = block(state_BTD, bias, mask_TT)
        return zero_past_end(self.norm(state_BTD), length_B)

    def states_at(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        """The states of the positions that `wanted_BT` (bool) marks, floating [X, D]."""
        states: Tensor = self(x_BTD, length_B, time_ms_BT)
        return states[wanted_BT]

    def forward_candidates(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        time_ms_BT: Tensor,
        candidate_BMD: Tensor,
        candidate_time_ms_B: Tensor,
    ) -> Tensor:
        """The output of each candidate as if it alone were the next event, at its request's time: floating
        [B, M, D].

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
        """The state after the last event of each history, floating [B, D], and the cache for `extend`; T >=
        1.

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
        """One more event for each history: the state after it, floating [B, D], and the longer cache.

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
