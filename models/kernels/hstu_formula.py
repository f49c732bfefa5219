"""HSTU attention written down: the formula that every fused kernel is compared with, and its time buckets.

Zhai et al., 2024, "Actions speak louder than words", eq. 2.

Shapes: B batch, T queries, S keys, H heads, E width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

NUM_DISTANCES = 64
NUM_TIME_BUCKETS = 48


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
