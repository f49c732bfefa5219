"""HSTU attention over a ragged batch of histories and candidates, forward and backward.

Owns how sequences of different lengths lie in one tensor and who sees whom; the formula for one sequence, the
buckets and their reasons are `models/kernels/hstu_formula.py`'s. Does not know projections, gates or layers.

Each sequence is a history followed by `num_candidates` candidates. An event sees itself and what was
before it; a candidate sees the whole history and itself, never another candidate, as if it alone were the
next event (the M-FALCON mask of Zhai et al., 2024, "Actions speak louder than words").

CUDA tensors go to the Triton kernels (`models/kernels/hstu_triton.py`), others to the torch reference.

Shapes: N positions of all sequences together, B sequences, T positions of one, H heads, E width of a head,
P distances, R time buckets.
"""

import torch
from torch import Tensor

from models.kernels import hstu_formula


def hstu_attention(
    q_NHE: Tensor,
    k_NHE: Tensor,
    v_NHE: Tensor,
    time_ms_N: Tensor,
    offset_B1: Tensor,
    num_candidates_B: Tensor,
    position_table_PH: Tensor,
    time_table_RH: Tensor,
    *,
    max_length: int,
) -> Tensor:
    """`models.kernels.hstu_formula.hstu_attention` of each sequence: [N, H, E], of `q_NHE`'s dtype, with
    gradients.

    `q_NHE`, `k_NHE`, `v_NHE` floating, of one dtype; `time_ms_N` int64, a candidate's being that of its
    request; sequence b is positions `offset_B1[b]` to `offset_B1[b + 1]` (int64 [B + 1]), the last
    `num_candidates_B[b]` (int64) of it candidates; no sequence is longer than `max_length`. The bias of a
    pair is position_table[min(distance, P - 1)] + time_table[min(binary digits of the time between, R - 1)].

    The gradients are those of q, k, v and the two tables, and the same in every run.
    """
    if q_NHE.is_cuda:
        # here: Triton comes with the extra `gpu` alone
        from models.kernels.hstu_triton import HstuAttention

        out_NHE: Tensor = HstuAttention.apply(
            q_NHE,
            k_NHE,
            v_NHE,
            time_ms_N,
            offset_B1,
            num_candidates_B,
            position_table_PH,
            time_table_RH,
            max_length,
        )  # type: ignore[no-untyped-call]
        return out_NHE
    return hstu_attention_reference(
        q_NHE, k_NHE, v_NHE, time_ms_N, offset_B1, num_candidates_B, position_table_PH, time_table_RH
    )


def hstu_attention_reference(
    q_NHE: Tensor,
    k_NHE: Tensor,
    v_NHE: Tensor,
    time_ms_N: Tensor,
    offset_B1: Tensor,
    num_candidates_B: Tensor,
    position_table_PH: Tensor,
    time_table_RH: Tensor,
) -> Tensor:
    """`hstu_attention` in torch, sequence by sequence and pair by pair: [N, H, E], of `q_NHE`'s dtype."""
    outs = [q_NHE[:0]]
    bounds = zip(offset_B1[:-1].tolist(), offset_B1[1:].tolist(), num_candidates_B.tolist(), strict=True)
    for begin, end, num_candidates in bounds:
        position_T = torch.arange(end - begin, device=q_NHE.device)
        place_T = position_T.clamp(
            max=end - begin - num_candidates
        )  # candidates share the place of the next event
        is_history_T = position_T < end - begin - num_candidates
        same_TT = position_T[:, None] == position_T
        mask_TT = same_TT | ((position_T[:, None] > position_T) & is_history_T)
        distance_TT = (place_T[:, None] - place_T).clamp(0, len(position_table_PH) - 1)
        time_T = time_ms_N[begin:end]
        bucket_TT = hstu_formula.time_bucket(time_T[:, None] - time_T).clamp(max=len(time_table_RH) - 1)
        bias_HTT = (position_table_PH[distance_TT] + time_table_RH[bucket_TT]).permute(2, 0, 1)
        q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (q_NHE, k_NHE, v_NHE))
        out_1HTE = hstu_formula.hstu_attention(q, k, v, bias_HTT[None], mask_TT[None, None])
        outs.append(out_1HTE[0].transpose(0, 1))
    return torch.cat(outs)
