"""The Triton kernel of `models/kernels/item_embedding.py`: lookups added where the projection is summed.

One program a block of items and of columns; the projection is accumulated in float32 over blocks of
content, and the embeddings of the items' codes are added to it before anything is written.

Shapes: N items, C codes of an item, V codebook size, D width, E content width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N = 32
BLOCK_D = 64
BLOCK_E = 32


@triton.jit
def embed_items_kernel(
    codes_ptr, content_ptr, table_ptr, weight_ptr, bias_ptr, out_ptr,
    num_items, content_width, width, codebook_size,
    NUM_CODES: tl.constexpr, IN_FLOAT32: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Items `program_id(0)`, columns `program_id(1)`."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_item, is_column = n < num_items, d < width
    item_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, content_width, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        is_content = e < content_width
        content_NE = tl.load(
            content_ptr + n[:, None] * content_width + e, mask=is_item[:, None] & is_content, other=0.0
        )
        weight_ED = tl.load(
            weight_ptr + d[None, :] * content_width + e[:, None],
            mask=is_content[:, None] & is_column,
            other=0.0,
        )
        if IN_FLOAT32:
            content_NE, weight_ED = content_NE.to(tl.float32), weight_ED.to(tl.float32)
        item_ND = tl.dot(content_NE, weight_ED, item_ND, input_precision="tf32x3")
    item_ND += tl.load(bias_ptr + d, mask=is_column, other=0.0).to(tl.float32)[None, :]
    for level in tl.static_range(NUM_CODES):
        code = tl.load(codes_ptr + n * NUM_CODES + level, mask=is_item, other=0)
        row = (level * codebook_size + code) * width
        item_ND += tl.load(table_ptr + row[:, None] + d, mask=is_item[:, None] & is_column, other=0.0).to(
            tl.float32
        )
    tl.store(
        out_ptr + n[:, None] * width + d,
        item_ND.to(out_ptr.dtype.element_ty),
        mask=is_item[:, None] & is_column,
    )


def launch_embed_items(
    codes_NC: Tensor, content_NE: Tensor, code_embedding_CVD: Tensor, weight_DE: Tensor, bias_D: Tensor
) -> Tensor:
    """`models.kernels.item_embedding.embed_items` by the kernel; on a CPU only under the interpreter."""
    num_items, num_codes = codes_NC.shape
    width, content_width = weight_DE.shape
    out_ND = torch.empty(num_items, width, dtype=weight_DE.dtype, device=codes_NC.device)
    if not num_items:
        return out_ND
    grid = (triton.cdiv(num_items, BLOCK_N), triton.cdiv(width, BLOCK_D))
    embed_items_kernel[grid](
        codes_NC.contiguous(), content_NE.to(weight_DE.dtype).contiguous(), code_embedding_CVD.contiguous(),
        weight_DE.contiguous(), bias_D.contiguous(), out_ND,
        num_items, content_width, width, code_embedding_CVD.shape[1],
        NUM_CODES=num_codes,
        IN_FLOAT32=not codes_NC.is_cuda,  # the interpreter multiplies bfloat16 wrongly
        BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D, BLOCK_E=BLOCK_E, enable_fp_fusion=True,
    )  # fmt: skip
    return out_ND
