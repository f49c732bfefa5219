"""The kernels of HSTU attention as one differentiable function.

Owns launching: grids, block sizes and the tensors in between.

Shapes: see `models/kernels/hstu_attention.py`.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from models.kernels.hstu_backward_triton import hstu_backward_keys_kernel, hstu_backward_queries_kernel
from models.kernels.hstu_forward_triton import hstu_forward_kernel

# positions of a program, for the forward one by the bytes of an element: as many as hardly spill
FORWARD_BLOCK = {2: 64, 4: 32}
BACKWARD_BLOCK = 32
KEY_BLOCK = 32
NUM_WARPS = 8
MIN_BLOCK = 16  # of a matrix product
OPTIONS: dict[str, int | bool] = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}


class HstuAttention(torch.autograd.Function):
    """`models.kernels.hstu_attention.hstu_attention` by the kernels; on a CPU only under the interpreter."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHE: Tensor,
        k_NHE: Tensor,
        v_NHE: Tensor,
        time_ms_N: Tensor,
        offset_B1: Tensor,
        num_candidates_B: Tensor,
        position_table_PH: Tensor,
        time_table_RH: Tensor,
        max_length: int,
    ) -> Tensor:
        """The attended values, [N, H, E]."""
        q_NHE, k_NHE, v_NHE = q_NHE.contiguous(), k_NHE.contiguous(), v_NHE.contiguous()
        tables = [table.float().T.contiguous() for table in (position_table_PH, time_table_RH)]
        inputs = (q_NHE, k_NHE, v_NHE, time_ms_N, offset_B1, num_candidates_B, *tables)
        ctx.save_for_backward(*inputs)
        ctx.max_length = max_length
        ctx.table_dtypes = position_table_PH.dtype, time_table_RH.dtype
        out_NHE = torch.empty_like(q_NHE)
        block = min(FORWARD_BLOCK[q_NHE.element_size()], block_size(max_length))
        grid = (triton.cdiv(max_length, block), q_NHE.shape[1], len(num_candidates_B))
        if 0 not in grid:
            hstu_forward_kernel[grid](*inputs, out_NHE, **_constants(q_NHE, tables, block), **OPTIONS)
        return out_NHE

    @staticmethod
    def backward(ctx: Any, grad_out_NHE: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the two tables."""
        inputs = ctx.saved_tensors
        q_NHE, k_NHE, v_NHE, *_, num_candidates_B, position_HP, time_HR = inputs
        num_heads = q_NHE.shape[1]
        block = min(BACKWARD_BLOCK, block_size(ctx.max_length))
        grid = (triton.cdiv(ctx.max_length, block), num_heads, len(num_candidates_B))
        grads = [torch.empty_like(x) for x in (q_NHE, k_NHE, v_NHE)]
        tables = [
            table.new_zeros(grid[2], num_heads, grid[0], table.shape[1]) for table in (position_HP, time_HR)
        ]
        if 0 not in grid:
            sizes = _constants(q_NHE, [position_HP, time_HR], block)
            grad_out_NHE = grad_out_NHE.contiguous()
            hstu_backward_queries_kernel[grid](*inputs, grad_out_NHE, grads[0], *tables, **sizes, **OPTIONS)
            hstu_backward_keys_kernel[grid](*inputs, grad_out_NHE, grads[1], grads[2], **sizes, **OPTIONS)
        grad_position_PH, grad_time_RH = (
            table.sum((0, 2)).T.to(dtype) for table, dtype in zip(tables, ctx.table_dtypes, strict=True)
        )
        return (*grads, None, None, None, grad_position_PH, grad_time_RH, None)


def block_size(length: int) -> int:
    """The least block that a sequence of `length` fills."""
    return max(MIN_BLOCK, int(triton.next_power_of_2(max(length, 1))))


def constants(
    *, num_heads: int, width: int, num_distances: int, num_time_buckets: int, block: int, in_float32: bool
) -> dict[str, int | bool]:
    """What a launch with `block` queries in a program, or keys in the backward one, is compiled for."""
    return {
        "NUM_HEADS": num_heads,
        "WIDTH": width,
        "NUM_DISTANCES": num_distances,
        "NUM_TIME_BUCKETS": num_time_buckets,
        "BLOCK_M": block,
        "BLOCK_N": min(block, KEY_BLOCK),
        "BLOCK_E": block_size(width),
        "IN_FLOAT32": in_float32,
    }


def _constants(q_NHE: Tensor, tables: list[Tensor], block: int) -> dict[str, int | bool]:
    position_HP, time_HR = tables
    return constants(
        num_heads=q_NHE.shape[1],
        width=q_NHE.shape[2],
        num_distances=position_HP.shape[1],
        num_time_buckets=time_HR.shape[1],
        block=block,
        in_float32=not q_NHE.is_cuda,  # the interpreter multiplies bfloat16 wrongly
    )
