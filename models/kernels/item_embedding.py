"""Item representations for a batch of items: the sum of their code embeddings + the projected content.

Owns one formula, that of `models.networks.recommender.GenerativeRecommender.encode_items`, as a function of
tensors. CUDA tensors go to the Triton kernel (`models/kernels/item_embedding_triton.py`) where no gradient is
wanted, all others to the torch reference.

Shapes: N items, C codes of an item, V codebook size, D width, E content width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def embed_items(
    codes_NC: Tensor, content_NE: Tensor, code_embedding_CVD: Tensor, weight_DE: Tensor, bias_D: Tensor
) -> Tensor:
    """`sum_c code_embedding[c, codes[n, c]] + weight @ content[n] + bias`: [N, D], of the weights' dtype.

    `codes_NC` int64 below V, the rest floating. The kernel has no backward: where a gradient is wanted, and
    on a CPU, this is torch.
    """
    inputs = (content_NE, code_embedding_CVD, weight_DE, bias_D)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if codes_NC.is_cuda and not needs_gradient:
        # here: Triton comes with the extra `gpu` alone
        from models.kernels.item_embedding_triton import launch_embed_items

        return launch_embed_items(codes_NC, content_NE, code_embedding_CVD, weight_DE, bias_D)
    return embed_items_reference(codes_NC, content_NE, code_embedding_CVD, weight_DE, bias_D)


def embed_items_reference(
    codes_NC: Tensor, content_NE: Tensor, code_embedding_CVD: Tensor, weight_DE: Tensor, bias_D: Tensor
) -> Tensor:
    """`embed_items` in torch, on any device: [N, D], of the weights' dtype."""
    item_ND = functional.linear(content_NE.to(weight_DE.dtype), weight_DE, bias_D)
    for level, table_VD in enumerate(code_embedding_CVD):
        item_ND = item_ND + table_VD[codes_NC[:, level]]
    return item_ND
