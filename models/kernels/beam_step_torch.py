"""One step of a beam search in plain torch, and what goes into and comes out of a step.

`models/kernels/beam_step.py` says what a step is, and chooses between this form and the kernel.

Shapes: B requests, K beams, V codebook size, W beams kept, P parent nodes, R edges, N child nodes, F most
children of a parent, X excluded nodes of a request, M places (K x F).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NO_NODE = -1
NO_KEY = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Children:
    """The edges from one depth of a trie to the next.

    Parent p has edges `offset_P1[p]` to `offset_P1[p + 1]` ([P + 1]), in ascending order of `code_R` ([R],
    below V); `child_R` ([R]) are nodes of the next depth. `live_N` ([N]) counts the available items at or
    below each of those; a child without any is not there for a search. Integers of any width.
    `max_children` is at least the most edges of any parent; there is at least one edge.
    """

    offset_P1: Tensor
    code_R: Tensor
    child_R: Tensor
    live_N: Tensor
    max_children: int


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """What each request must not get: `count_BX` available items at or below child node `key_BX`.

    Both int64 [B, X], X a power of two; keys ascend in each row, which is filled up with NO_KEY.
    """

    key_BX: Tensor
    count_BX: Tensor


@dataclass(frozen=True, kw_only=True)
class BeamStep:
    """The children kept of each request, in ascending order of (beam, code), then the padding.

    `parent_BW` is the beam it came from, `code_BW` and `child_BW` its code and node (int64, NO_NODE in the
    padding); `score_BW` float32, -inf in the padding.
    """

    parent_BW: Tensor
    code_BW: Tensor
    child_BW: Tensor
    score_BW: Tensor


def beam_step_reference(
    logits_BKV: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    children: Children,
    *,
    width: int,
    excluded: Excluded | None = None,
) -> BeamStep:
    """`beam_step` in torch, on any device, with its dtypes: all K x F places of a request, sorted."""
    edge_BKF, live_BKF = _live_edges(node_BK, children)
    code_BKF, child_BKF = children.code_R[edge_BKF].long(), children.child_R[edge_BKF].long()
    logit_BKF = logits_BKV.float().gather(2, code_BKF)
    # a beam without any child: finite, so that nothing is NaN; it is masked again below
    log_probability_BKF = logit_BKF.masked_fill(~live_BKF, torch.finfo(torch.float32).min).log_softmax(2)
    if excluded is not None:
        live_BKF = live_BKF & (children.live_N[child_BKF] > _num_excluded(child_BKF, excluded))
    score_BKF = (score_BK[:, :, None] + log_probability_BKF).masked_fill(~live_BKF, -torch.inf)

    num_places = score_BKF[0].numel() if len(score_BKF) else 0
    best = score_BKF.flatten(1).sort(dim=1, descending=True, stable=True)
    is_child_BW = best.values[:, :width] > -torch.inf
    place_BW = best.indices[:, :width].masked_fill(~is_child_BW, num_places).sort(dim=1).values
    kept_BW = place_BW < num_places
    place_BW = place_BW.clamp(max=max(num_places - 1, 0))
    step = BeamStep(
        parent_BW=(place_BW // max(children.max_children, 1)).masked_fill(~kept_BW, NO_NODE),
        code_BW=code_BKF.flatten(1).gather(1, place_BW).masked_fill(~kept_BW, NO_NODE),
        child_BW=child_BKF.flatten(1).gather(1, place_BW).masked_fill(~kept_BW, NO_NODE),
        score_BW=score_BKF.flatten(1).gather(1, place_BW).masked_fill(~kept_BW, -torch.inf),
    )
    return _padded(step, width)


def _live_edges(node_BK: Tensor, children: Children) -> tuple[Tensor, Tensor]:
    """The edges of each beam, int64 [B, K, F], and which of them lead to an available item."""
    num_parents = len(children.offset_P1) - 1
    has_BK = (node_BK >= 0) & (node_BK < num_parents)
    node_BK = node_BK.masked_fill(~has_BK, 0)
    edge_BKF = children.offset_P1[node_BK].long()[..., None] + torch.arange(
        children.max_children, device=node_BK.device
    )
    is_edge_BKF = (edge_BKF < children.offset_P1[node_BK + 1][..., None]) & has_BK[..., None]
    edge_BKF = edge_BKF.masked_fill(~is_edge_BKF, 0)
    return edge_BKF, is_edge_BKF & (children.live_N[children.child_R[edge_BKF].long()] > 0)


def _num_excluded(child_BKF: Tensor, excluded: Excluded) -> Tensor:
    """How many available items at or below each child its request must not get, int64 [B, K, F]."""
    child_BM = child_BKF.flatten(1)
    at_BM = torch.searchsorted(excluded.key_BX, child_BM).clamp(max=excluded.key_BX.shape[1] - 1)
    same_BM = excluded.key_BX.gather(1, at_BM) == child_BM
    return torch.where(same_BM, excluded.count_BX.gather(1, at_BM), 0).view_as(child_BKF)


def _padded(step: BeamStep, width: int) -> BeamStep:
    """`step` in `width` columns, where there were not as many places."""
    missing = width - step.parent_BW.shape[1]

    def pad(value_BW: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(value_BW, (0, missing), value=fill)

    return BeamStep(
        parent_BW=pad(step.parent_BW, NO_NODE),
        code_BW=pad(step.code_BW, NO_NODE),
        child_BW=pad(step.child_BW, NO_NODE),
        score_BW=pad(step.score_BW, -torch.inf),
    )
