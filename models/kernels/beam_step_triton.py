"""The Triton kernel of `models/kernels/beam_step.py`; it says what a step is, this says how.

One program a request. It scores all children of all beams into a scratch row of sortable integers, finds
the `width`-th largest of them bit by bit (31 counts, however wide the beam; a sort of thousands of
elements compiles to huge PTX), and compacts what is above it, and the first of what equals it, in order
of place. Nothing is cut before it is masked.

Shapes: see `models/kernels/beam_step.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.beam_step_torch import BeamStep, Children, Excluded

MAX_TILE = 2_048
NUM_WARPS = 8
NO_CANDIDATE = tl.constexpr(-(2**31))  # below the key of every score


@triton.jit
def score_key(score):
    """float32 -> int32 of the same order: negative floats have their magnitude bits turned round."""
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 and 0.0 are one score
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def key_score(key):
    """The float32 that `score_key` made `key` of."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def log_total(value):
    """Largest value of each row and log of the sum of exp(value - largest); (0, 0) for a row of -inf."""
    top = tl.max(value, axis=1)
    top = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.exp(value - top[:, None]), axis=1)
    return top, tl.log(tl.where(total == 0.0, 1.0, total))


@triton.jit
def num_excluded(child, wanted, key_ptr, count_ptr, NUM_KEYS: tl.constexpr, NUM_HALVINGS: tl.constexpr):
    """The count of each wanted child among the request's sorted keys, by binary search, or 0."""
    at = tl.zeros_like(child)
    for halving in tl.static_range(NUM_HALVINGS):
        probe = at + (NUM_KEYS >> (halving + 1))
        at = tl.where(tl.load(key_ptr + probe - 1, mask=wanted, other=0) < child, probe, at)
    same = wanted & (tl.load(key_ptr + at, mask=wanted, other=0) == child)
    return tl.load(count_ptr + at, mask=same, other=0)


@triton.jit
def score_children(
    b, logits_ptr, score_ptr, node_ptr, offset_ptr, code_ptr, child_ptr,
    live_ptr, excluded_ptr, excluded_count_ptr, key_ptr,
    num_beams, num_parents, codebook_size,
    NUM_EXCLUDED: tl.constexpr, NUM_HALVINGS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Writes the key of every place of request `b`, BLOCK_F places a beam, to its scratch row."""
    f = tl.arange(0, BLOCK_F)
    for first_beam in range(0, num_beams, BLOCK_K):
        k = first_beam + tl.arange(0, BLOCK_K)
        is_beam = k < num_beams
        beam = b.to(tl.int64) * num_beams + k
        node = tl.load(node_ptr + beam, mask=is_beam, other=-1)
        has = (node >= 0) & (node < num_parents)
        begin = tl.load(offset_ptr + node, mask=has, other=0)
        end = tl.load(offset_ptr + node + 1, mask=has, other=0)
        edge = begin[:, None] + f
        is_edge = edge < end[:, None]
        child = tl.load(child_ptr + edge, mask=is_edge, other=0)
        num_live = tl.load(live_ptr + child, mask=is_edge, other=0)
        live = is_edge & (num_live > 0)
        code = tl.load(code_ptr + edge, mask=live, other=0)
        logit = tl.load(logits_ptr + beam[:, None] * codebook_size + code, mask=live, other=-float("inf")).to(
            tl.float32
        )
        top, log_sum = log_total(logit)
        found = live
        if NUM_EXCLUDED > 0:
            row = b.to(tl.int64) * NUM_EXCLUDED
            hidden = num_excluded(
                child, live, excluded_ptr + row, excluded_count_ptr + row, NUM_EXCLUDED, NUM_HALVINGS
            )
            found = live & (num_live > hidden)
        before = tl.load(score_ptr + beam, mask=is_beam, other=0.0)
        score = before[:, None] + (logit - top[:, None] - log_sum[:, None])
        place = k[:, None] * BLOCK_F + f
        found = found & (score > -float("inf"))
        tl.store(key_ptr + place, tl.where(found, score_key(score), NO_CANDIDATE))


@triton.jit
def width_th_largest(key_ptr, num_places, width, BLOCK: tl.constexpr):
    """The largest threshold that at least `width` keys reach (NO_CANDIDATE if that many are not there).

    And how many keys are above it: (threshold, above), both int32.
    """
    threshold = tl.full((), NO_CANDIDATE, tl.int32)
    for bit in range(0, 32):
        # the highest bit is the sign: without it a number is negative
        higher = tl.where(bit == 0, 0, threshold + (1 << (31 - tl.maximum(bit, 1)))).to(tl.int32)
        reached = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, num_places, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = tl.load(key_ptr + place, mask=place < num_places, other=NO_CANDIDATE)
            reached += (key >= higher).to(tl.int32)
        threshold = tl.where(tl.sum(reached, axis=0) >= width, higher, threshold)
    above = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_places, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = tl.load(key_ptr + place, mask=place < num_places, other=NO_CANDIDATE)
        above += (key > threshold).to(tl.int32)
    return threshold, tl.sum(above, axis=0)


@triton.jit
def beam_step_kernel(
    logits_ptr, score_ptr, node_ptr, offset_ptr, code_ptr, child_ptr,
    live_ptr, excluded_ptr, excluded_count_ptr, scratch_ptr,
    parent_out_ptr, code_out_ptr, child_out_ptr, score_out_ptr,
    num_beams, num_parents, codebook_size, width,
    NUM_EXCLUDED: tl.constexpr, NUM_HALVINGS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Request `program_id(0)`: scores, threshold, compaction, padding."""
    b = tl.program_id(0)
    num_places = tl.cdiv(num_beams, BLOCK_K) * BLOCK_K * BLOCK_F
    key_ptr = scratch_ptr + b.to(tl.int64) * num_places
    score_children(
        b, logits_ptr, score_ptr, node_ptr, offset_ptr, code_ptr, child_ptr, live_ptr, excluded_ptr,
        excluded_count_ptr, key_ptr, num_beams, num_parents, codebook_size,
        NUM_EXCLUDED, NUM_HALVINGS, BLOCK_K, BLOCK_F,
    )  # fmt: skip
    tl.debug_barrier()  # one thread's keys are read by the others from here on
    threshold, above = width_th_largest(key_ptr, num_places, width, BLOCK_S)
    num_tied_wanted = width - above
    num_taken = tl.full((), 0, tl.int32)
    num_tied = tl.full((), 0, tl.int32)
    out = b.to(tl.int64) * width
    for first in range(0, num_places, BLOCK_S):
        place = first + tl.arange(0, BLOCK_S)
        key = tl.load(key_ptr + place, mask=place < num_places, other=NO_CANDIDATE)
        tied = (key == threshold) & (key != NO_CANDIDATE)
        tie_rank = num_tied + tl.cumsum(tied.to(tl.int32), axis=0)
        taken = (key > threshold) | (tied & (tie_rank <= num_tied_wanted))
        to = out + num_taken + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        parent = place // BLOCK_F
        node = tl.load(node_ptr + b.to(tl.int64) * num_beams + parent, mask=taken, other=0)
        edge = tl.load(offset_ptr + node, mask=taken, other=0) + place % BLOCK_F
        tl.store(parent_out_ptr + to, parent.to(tl.int64), mask=taken)
        tl.store(code_out_ptr + to, tl.load(code_ptr + edge, mask=taken, other=0), mask=taken)
        tl.store(child_out_ptr + to, tl.load(child_ptr + edge, mask=taken, other=0), mask=taken)
        tl.store(score_out_ptr + to, key_score(key), mask=taken)
        num_tied += tl.sum(tied.to(tl.int32), axis=0)
        num_taken += tl.sum(taken.to(tl.int32), axis=0)
    for first in range(0, width, BLOCK_S):
        w = first + tl.arange(0, BLOCK_S)
        padding = (w >= num_taken) & (w < width)
        nothing = tl.full((BLOCK_S,), -1, tl.int64)
        tl.store(parent_out_ptr + out + w, nothing, mask=padding)
        tl.store(code_out_ptr + out + w, nothing, mask=padding)
        tl.store(child_out_ptr + out + w, nothing, mask=padding)
        tl.store(score_out_ptr + out + w, tl.full((BLOCK_S,), -float("inf"), tl.float32), mask=padding)


def launch_beam_step(
    logits_BKV: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    children: Children,
    *,
    width: int,
    excluded: Excluded | None = None,
) -> BeamStep:
    """`models.kernels.beam_step.beam_step` by the kernel; on CPU tensors only under the interpreter."""
    batch_size, num_beams, codebook_size = logits_BKV.shape
    device = logits_BKV.device
    sizes = block_sizes(num_beams, children.max_children)
    num_places = triton.cdiv(num_beams, sizes["BLOCK_K"]) * sizes["BLOCK_K"] * sizes["BLOCK_F"]
    step = BeamStep(
        parent_BW=torch.empty(batch_size, width, dtype=torch.int64, device=device),
        code_BW=torch.empty(batch_size, width, dtype=torch.int64, device=device),
        child_BW=torch.empty(batch_size, width, dtype=torch.int64, device=device),
        score_BW=torch.empty(batch_size, width, device=device),
    )
    if not batch_size:
        return step
    num_excluded_keys = 0 if excluded is None else excluded.key_BX.shape[1]
    no_table = children.live_N  # never read
    beam_step_kernel[(batch_size,)](
        logits_BKV.contiguous(), score_BK.contiguous(), node_BK.contiguous(),
        children.offset_P1, children.code_R, children.child_R, children.live_N,
        no_table if excluded is None else excluded.key_BX.contiguous(),
        no_table if excluded is None else excluded.count_BX.contiguous(),
        torch.empty(batch_size, num_places, dtype=torch.int32, device=device),
        step.parent_BW, step.code_BW, step.child_BW, step.score_BW,
        num_beams, len(children.offset_P1) - 1, codebook_size, width,
        NUM_EXCLUDED=num_excluded_keys,
        NUM_HALVINGS=max(num_excluded_keys.bit_length() - 1, 0),
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
        **sizes,
    )  # fmt: skip
    return step


def block_sizes(num_beams: int, max_children: int) -> dict[str, int]:
    """The powers of two that a launch of these sizes is compiled for."""
    block_f = triton.next_power_of_2(max(max_children, 1))
    block_k = max(1, min(triton.next_power_of_2(num_beams), MAX_TILE // block_f))
    block_s = min(triton.next_power_of_2(num_beams) * block_f, MAX_TILE)
    return {"BLOCK_K": block_k, "BLOCK_F": block_f, "BLOCK_S": block_s}
