"""What the forward and the backward kernels of HSTU attention share: sequences, pairs and their biases.

Shapes: see `models/kernels/hstu_attention.py`; M queries and N keys of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def sequence(b, offset_ptr, num_candidates_ptr):
    """First position of sequence `b` (int64), its length, and the length of its history (int32)."""
    begin = tl.load(offset_ptr + b).to(tl.int64)
    length = (tl.load(offset_ptr + b + 1) - begin).to(tl.int32)
    return begin, length, length - tl.load(num_candidates_ptr + b).to(tl.int32)


@triton.jit
def load_rows(
    x_ptr, row, wanted, head, NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_E: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Rows of one head of a contiguous [N, H, E], zero where not wanted: [rows, BLOCK_E]."""
    e = tl.arange(0, BLOCK_E)
    at = (row[:, None] * NUM_HEADS + head) * WIDTH + e
    x = tl.load(x_ptr + at, mask=wanted[:, None] & (e < WIDTH), other=0.0)
    if IN_FLOAT32:
        x = x.to(tl.float32)
    return x


@triton.jit
def store_rows(
    x_ptr, row, wanted, head, value, NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The opposite of `load_rows`, in the dtype of what `x_ptr` points to."""
    e = tl.arange(0, BLOCK_E)
    at = (row[:, None] * NUM_HEADS + head) * WIDTH + e
    tl.store(x_ptr + at, value.to(x_ptr.dtype.element_ty), mask=wanted[:, None] & (e < WIDTH))


@triton.jit
def num_digits(elapsed_ms):
    """Binary digits of an int64, 0 for 0 and below.

    It is read from the exponent of a float32. Rounding must not carry into one more digit (2^30 - 1 ->
    2^30), so every one that follows a one is cleared first; the leading one stays.
    """
    positive = tl.maximum(elapsed_ms, 0)
    sparse = positive & ~(positive >> 1)
    exponent = (sparse.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
    return tl.where(positive == 0, 0, exponent)


@triton.jit
def pair_buckets(
    i, j, time_i, time_j, num_events,
    NUM_DISTANCES: tl.constexpr, NUM_TIME_BUCKETS: tl.constexpr,
):  # fmt: skip
    """Entries of the two tables for queries `i` and keys `j` of a history, int32 [M, N] each."""
    place_i = tl.minimum(i, num_events)
    distance = tl.minimum(tl.maximum(place_i[:, None] - j[None, :], 0), NUM_DISTANCES - 1)
    digits = num_digits(time_i[:, None] - time_j[None, :])
    return distance, tl.minimum(digits, NUM_TIME_BUCKETS - 1)


@triton.jit
def silu(score):
    """SiLU(s) = s / (1 + exp(-s))."""
    return score * tl.sigmoid(score)


@triton.jit
def silu_slope(score):
    """The derivative of SiLU."""
    sigmoid = tl.sigmoid(score)
    return sigmoid * (1.0 + score * (1.0 - sigmoid))
