"""The training losses, as pure functions of states, logits and targets.

Owns the softmax over a whole catalogue that never holds all its logits at once, and the sampled one for
catalogues too big for that. Knows nothing of modules or optimisers.

Shapes: X states or queries, N items, S sampled items, C codes of an item, V codebook size, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

CHUNK_STATES = 128


def code_loss(logits_XCV: Tensor, codes_XC: Tensor, valid_XCV: Tensor) -> Tensor:
    """Mean over X targets of -log p(codes), the sum of the C levels' cross entropies: float32, in nats.

    At each level the target's code (int64) competes with the `valid_XCV` (bool) codes alone: those that lead
    from its prefix to an item, as in the search. With one valid code there is nothing to learn.
    """
    num_levels = codes_XC.shape[1]
    logits_XCV = logits_XCV.float().masked_fill(~valid_XCV, -torch.inf)
    flat_XC = functional.cross_entropy(logits_XCV.flatten(0, 1), codes_XC.flatten())
    return flat_XC * num_levels


class _CatalogueCrossEntropy(Function):
    """Cross entropy of X queries over N vectors, forward and backward chunk by chunk.

    The logits of a batch (1,500 x 12,000 floats) cost more to write and read than to compute. Each chunk's
    are turned into its gradients while they are in cache, so nothing of size X x N is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query_XD: Tensor, vector_ND: Tensor, target_X: Tensor, dtype: torch.dtype
    ) -> Tensor:
        vectors = vector_ND.detach().to(dtype)
        queries = query_XD.detach().to(dtype)
        grad_query_XD = torch.empty_like(query_XD)
        grad_vector_ND = torch.zeros_like(vector_ND, dtype=torch.float32)
        total = query_XD.new_zeros((), dtype=torch.float32)
        is_target_X = target_X >= 0
        weight_X = is_target_X / is_target_X.sum().clamp(min=1)
        for start in range(0, len(queries), CHUNK_STATES):
            chunk = slice(start, start + CHUNK_STATES)
            log_p = (queries[chunk] @ vectors.T).float().log_softmax(1)
            target, weight = target_X[chunk, None].clamp(min=0), weight_X[chunk, None]
            total -= (log_p.gather(1, target) * weight).sum()
            grad = log_p.exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            low = grad.mul_(weight).to(dtype)
            grad_query_XD[chunk] = low @ vectors
            grad_vector_ND += (low.T @ queries[chunk]).float()
        ctx.save_for_backward(grad_query_XD, grad_vector_ND.to(vector_ND.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_query_XD, grad_vector_ND = ctx.saved_tensors
        (grad_loss,) = grad_outputs
        return grad_query_XD * grad_loss, grad_vector_ND * grad_loss, None, None


def catalogue_loss(query_XD: Tensor, vector_ND: Tensor, target_X: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Mean cross entropy of each query's target row (int64) among all N vectors, by dot product: float32, in
    nats. Queries with target -1 do not count.

    Matrix products run in `dtype`, sums in float32; gradients reach both queries and vectors.
    """
    loss: Tensor = _CatalogueCrossEntropy.apply(query_XD, vector_ND, target_X, dtype)  # type: ignore[no-untyped-call]
    return loss


def sampled_loss(
    query_XD: Tensor, target_vector_XD: Tensor, negative_SD: Tensor, log_expected_S: Tensor, same_XS: Tensor
) -> Tensor:
    """Mean cross entropy of each query's target against S shared negatives drawn with replacement: float32,
    nats.

    `log_expected_S` (float32) is the log of how often each negative was expected in the sample: subtracted
    from its logit (Bengio & Senecal, 2008), it makes the sum over the sample estimate the sum over the
    catalogue. `same_XS` bool marks negatives that are the target itself; they do not count.
    """
    target_X1 = (query_XD * target_vector_XD).sum(1, keepdim=True).float()
    negative_XS = (query_XD @ negative_SD.T).float() - log_expected_S
    logits_XS = torch.cat([target_X1, negative_XS.masked_fill(same_XS, -torch.inf)], dim=1)
    return (logits_XS.logsumexp(1) - target_X1[:, 0]).mean()
