"""The forward kernel of HSTU attention.

One program a block of queries of one head of one sequence, over blocks of keys of the history; a
candidate's own key is no block but a dot product of its row. No score is ever written to memory.

Shapes: see `models/kernels/hstu_attention.py`; M queries and N keys of a tile.
"""

import triton
import triton.language as tl

from models.kernels.hstu_pairs_triton import load_rows, pair_buckets, sequence, silu, store_rows


@triton.jit
def hstu_forward_kernel(
    q_ptr, k_ptr, v_ptr, time_ptr, offset_ptr, num_candidates_ptr,
    position_ptr, time_table_ptr, out_ptr,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, NUM_DISTANCES: tl.constexpr, NUM_TIME_BUCKETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Queries of block `program_id(0)`, head `program_id(1)`, sequence `program_id(2)`.

    The tables are contiguous float32 [H, P] and [H, R].
    """
    first_query, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    begin, length, num_events = sequence(tl.program_id(2), offset_ptr, num_candidates_ptr)
    if first_query < length:
        position_ptr += head * NUM_DISTANCES
        time_table_ptr += head * NUM_TIME_BUCKETS
        i = first_query + tl.arange(0, BLOCK_M)
        is_query = i < length
        q_ME = load_rows(q_ptr, begin + i, is_query, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
        time_i = tl.load(time_ptr + begin + i, mask=is_query, other=0)
        out_ME = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
        for first_key in range(0, tl.minimum(first_query + BLOCK_M, num_events), BLOCK_N):
            j = first_key + tl.arange(0, BLOCK_N)
            is_key = j < num_events
            k_NE = load_rows(k_ptr, begin + j, is_key, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            v_NE = load_rows(v_ptr, begin + j, is_key, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            time_j = tl.load(time_ptr + begin + j, mask=is_key, other=0)
            seen = (i[:, None] >= j[None, :]) & is_key[None, :] & is_query[:, None]
            distance, digits = pair_buckets(i, j, time_i, time_j, num_events, NUM_DISTANCES, NUM_TIME_BUCKETS)
            bias_MN = tl.load(position_ptr + distance) + tl.load(time_table_ptr + digits)
            score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="tf32x3") + bias_MN
            weight_MN = tl.where(seen, silu(score_MN), 0.0)
            out_ME = tl.dot(weight_MN.to(v_NE.dtype), v_NE, out_ME, input_precision="tf32x3")
        if first_query + BLOCK_M > num_events:
            own = is_query & (i >= num_events)
            k_ME = load_rows(k_ptr, begin + i, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            v_ME = load_rows(v_ptr, begin + i, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            own_score_M = tl.sum(q_ME.to(tl.float32) * k_ME.to(tl.float32), axis=1)
            own_score_M += tl.load(position_ptr) + tl.load(time_table_ptr)
            own_weight_M = tl.where(own, silu(own_score_M), 0.0)
            out_ME += own_weight_M[:, None] * v_ME.to(tl.float32)
        num_seen_M = (tl.minimum(i, num_events) + 1).to(tl.float32)
        out_ME = out_ME / num_seen_M[:, None]
        store_rows(out_ptr, begin + i, is_query, head, out_ME, NUM_HEADS, WIDTH, BLOCK_E)
