"""The backward kernels of HSTU attention: of queries and bias tables, and of keys and values.

Scores are computed again, not kept. No gradient is added to by two programs, and what a program adds to
its own row of the tables' gradients it adds in order, so a run repeats to the last bit.

Shapes: see `models/kernels/hstu_attention.py`; M queries and N keys of a tile.
"""

import triton
import triton.language as tl

from models.kernels.hstu_pairs_triton import (
    load_rows,
    pair_buckets,
    sequence,
    silu,
    silu_slope,
    store_rows,
)


@triton.jit
def add_by_bucket(sum_ptr, bucket, value, wanted):
    """sum[b] += the wanted values of bucket b, for the buckets that are there.

    Neighbouring positions share few time buckets and, past the table's end, one distance; one sum for each
    costs less than an addition in memory for each pair, and has an order.
    """
    lowest = tl.min(tl.min(tl.where(wanted, bucket, 0x7FFFFFFF), axis=1), axis=0)
    highest = tl.max(tl.max(tl.where(wanted, bucket, -1), axis=1), axis=0)
    for b in range(lowest, highest + 1):
        total = tl.sum(tl.sum(tl.where(wanted & (bucket == b), value, 0.0), axis=1), axis=0)
        tl.atomic_add(sum_ptr + b, total, sem="relaxed")


@triton.jit
def hstu_backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, time_ptr, offset_ptr, num_candidates_ptr,
    position_ptr, time_table_ptr, grad_out_ptr,
    grad_q_ptr, grad_position_ptr, grad_time_ptr,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, NUM_DISTANCES: tl.constexpr, NUM_TIME_BUCKETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """As the forward kernel; the tables' gradients are [programs, P] and [programs, R], zero before."""
    first_query, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    begin, length, num_events = sequence(tl.program_id(2), offset_ptr, num_candidates_ptr)
    if first_query < length:
        program = (tl.program_id(2) * NUM_HEADS + head) * tl.num_programs(0) + tl.program_id(0)
        grad_position_ptr += program.to(tl.int64) * NUM_DISTANCES
        grad_time_ptr += program.to(tl.int64) * NUM_TIME_BUCKETS
        position_ptr += head * NUM_DISTANCES
        time_table_ptr += head * NUM_TIME_BUCKETS
        i = first_query + tl.arange(0, BLOCK_M)
        is_query = i < length
        q_ME = load_rows(q_ptr, begin + i, is_query, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
        g_ME = load_rows(grad_out_ptr, begin + i, is_query, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
        share_M = 1.0 / (tl.minimum(i, num_events) + 1).to(tl.float32)
        time_i = tl.load(time_ptr + begin + i, mask=is_query, other=0)
        grad_q_ME = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
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
            grad_weight_MN = tl.dot(g_ME, tl.trans(v_NE), input_precision="tf32x3") * share_M[:, None]
            grad_score_MN = tl.where(seen, grad_weight_MN * silu_slope(score_MN), 0.0)
            grad_q_ME = tl.dot(grad_score_MN.to(k_NE.dtype), k_NE, grad_q_ME, input_precision="tf32x3")
            add_by_bucket(grad_position_ptr, distance, grad_score_MN, seen)
            add_by_bucket(grad_time_ptr, digits, grad_score_MN, seen)
        if first_query + BLOCK_M > num_events:
            own = is_query & (i >= num_events)
            k_ME = load_rows(k_ptr, begin + i, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32).to(
                tl.float32
            )
            v_ME = load_rows(v_ptr, begin + i, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32).to(
                tl.float32
            )
            own_score_M = tl.sum(q_ME.to(tl.float32) * k_ME, axis=1)
            own_score_M += tl.load(position_ptr) + tl.load(time_table_ptr)
            grad_own_M = tl.sum(g_ME.to(tl.float32) * v_ME, axis=1) * share_M * silu_slope(own_score_M)
            grad_own_M = tl.where(own, grad_own_M, 0.0)
            grad_q_ME += grad_own_M[:, None] * k_ME
            total = tl.sum(grad_own_M, axis=0)
            tl.atomic_add(grad_position_ptr, total, sem="relaxed")
            tl.atomic_add(grad_time_ptr, total, sem="relaxed")
        store_rows(grad_q_ptr, begin + i, is_query, head, grad_q_ME, NUM_HEADS, WIDTH, BLOCK_E)


@triton.jit
def hstu_backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, time_ptr, offset_ptr, num_candidates_ptr,
    position_ptr, time_table_ptr, grad_out_ptr, grad_k_ptr, grad_v_ptr,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, NUM_DISTANCES: tl.constexpr, NUM_TIME_BUCKETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Keys of block `program_id(0)`, head `program_id(1)`, sequence `program_id(2)`."""
    first_key, head = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    begin, length, num_events = sequence(tl.program_id(2), offset_ptr, num_candidates_ptr)
    if first_key < length:
        position_ptr += head * NUM_DISTANCES
        time_table_ptr += head * NUM_TIME_BUCKETS
        j = first_key + tl.arange(0, BLOCK_N)
        in_sequence = j < length
        is_key = j < num_events
        k_NE = load_rows(k_ptr, begin + j, in_sequence, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
        v_NE = load_rows(v_ptr, begin + j, in_sequence, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
        time_j = tl.load(time_ptr + begin + j, mask=in_sequence, other=0)
        grad_k_NE = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
        grad_v_NE = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
        num_queries = tl.where(first_key < num_events, length, 0)  # nobody else sees a candidate
        for first_query in range(first_key // BLOCK_M * BLOCK_M, num_queries, BLOCK_M):
            i = first_query + tl.arange(0, BLOCK_M)
            is_query = i < length
            q_ME = load_rows(q_ptr, begin + i, is_query, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            g_ME = load_rows(grad_out_ptr, begin + i, is_query, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32)
            time_i = tl.load(time_ptr + begin + i, mask=is_query, other=0)
            seen = (i[:, None] >= j[None, :]) & is_key[None, :] & is_query[:, None]
            distance, digits = pair_buckets(i, j, time_i, time_j, num_events, NUM_DISTANCES, NUM_TIME_BUCKETS)
            bias_MN = tl.load(position_ptr + distance) + tl.load(time_table_ptr + digits)
            score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="tf32x3") + bias_MN
            share_M1 = 1.0 / (tl.minimum(i, num_events) + 1).to(tl.float32)[:, None]
            weight_MN = tl.where(seen, silu(score_MN) * share_M1, 0.0)
            grad_v_NE = tl.dot(tl.trans(weight_MN.to(g_ME.dtype)), g_ME, grad_v_NE, input_precision="tf32x3")
            grad_weight_MN = tl.dot(g_ME, tl.trans(v_NE), input_precision="tf32x3") * share_M1
            grad_score_MN = tl.where(seen, grad_weight_MN * silu_slope(score_MN), 0.0)
            grad_k_NE = tl.dot(
                tl.trans(grad_score_MN.to(q_ME.dtype)), q_ME, grad_k_NE, input_precision="tf32x3"
            )
        if first_key + BLOCK_N > num_events:
            own = in_sequence & (j >= num_events)
            q_NE = load_rows(q_ptr, begin + j, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32).to(
                tl.float32
            )
            g_NE = load_rows(grad_out_ptr, begin + j, own, head, NUM_HEADS, WIDTH, BLOCK_E, IN_FLOAT32).to(
                tl.float32
            )
            own_score_N = tl.sum(q_NE * k_NE.to(tl.float32), axis=1)
            own_score_N += tl.load(position_ptr) + tl.load(time_table_ptr)
            share = 1.0 / (num_events + 1).to(tl.float32)
            grad_own_N = tl.sum(g_NE * v_NE.to(tl.float32), axis=1) * share * silu_slope(own_score_N)
            grad_k_NE += tl.where(own, grad_own_N, 0.0)[:, None] * q_NE
            grad_v_NE += tl.where(own, silu(own_score_N) * share, 0.0)[:, None] * g_NE
        store_rows(grad_k_ptr, begin + j, in_sequence, head, grad_k_NE, NUM_HEADS, WIDTH, BLOCK_E)
        store_rows(grad_v_ptr, begin + j, in_sequence, head, grad_v_NE, NUM_HEADS, WIDTH, BLOCK_E)
