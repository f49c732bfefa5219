"""One step of a beam search: the best children of all beams of each request, in static shapes.

Owns the arithmetic and the order of one step: which children there are, what they score, which of them go
on. Does not know the network that gives the logits, nor how nodes came to their numbers
(`models/catalogue/trie.py`, `models/decoding/captured_decode.py`).

What is unavailable is masked *before* anything is compared or cut, and every beam that has a child takes
part: truncating to the best codes first starves beams whose valid codes are unlikely. No shape depends on
the data, so that a CUDA graph can hold the step.

CUDA tensors go to the Triton kernel (`models/kernels/beam_step_triton.py`), others to the torch reference.

Shapes: B requests, K beams, V codebook size, W beams kept, P parent nodes, R edges, N child nodes, F most
children of a parent, X excluded nodes of a request.
"""

from torch import Tensor

from models.kernels.beam_step_torch import BeamStep, Children, Excluded, beam_step_reference


def beam_step(
    logits_BKV: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    children: Children,
    *,
    width: int,
    excluded: Excluded | None = None,
) -> BeamStep:
    """The `width` best children of each request's beams; of equal scores, those of lower (beam, code).

    `logits_BKV` floating, `score_BK` float32, `node_BK` int64 (NO_NODE is no beam, a number from P on has
    no children). A child's score is its beam's plus the log-softmax of its code, in float32: over the
    live children of its parent alone. Exclusions hide
    children and leave the softmax as it is, so a score does not depend on what else was excluded. A child
    with the score -inf is none.

    Beams in ascending order of their codes come out in that order again. Raises ValueError for a `width`
    below 1.
    """
    if width < 1:
        raise ValueError("width must be at least 1")
    if logits_BKV.is_cuda:
        # here: Triton comes with the extra `gpu` alone
        from models.kernels.beam_step_triton import launch_beam_step

        return launch_beam_step(
            logits_BKV,
            score_BK,
            node_BK,
            children,
            width=width,
            excluded=excluded,
        )
    return beam_step_reference(logits_BKV, score_BK, node_BK, children, width=width, excluded=excluded)
