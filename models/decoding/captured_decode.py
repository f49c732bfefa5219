"""A whole decode in static shapes: on a GPU one CUDA graph, elsewhere the same steps called directly.

Owns fixed buffers for requests, catalogue and exclusions, the loop over levels, and the capture. Does not
know the network (a callable gives its logits) nor what an item is (rows and codes).

Always `batch_size` requests and `beam` prefixes, those that are missing being padding: nothing waits for a
value, so the graph holds. What a CPU does faster by looking at the values is
`models/decoding/beam_search.py`; the tests hold both to the same results.

Shapes: B requests, K beams, k results, C codes of an item, V codebook size, N items, X excluded items of a
request, Q = B x K prefixes, l codes so far, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.decoding.beam_search import CodeLogits
from models.kernels.beam_step import beam_step
from models.kernels.beam_step_torch import NO_KEY, Children, Excluded

_NUM_WARM_UPS = 3


@dataclass(frozen=True, kw_only=True)
class DecodeSizes:
    """What a decode is made for: a smaller request fits, a larger one does not."""

    batch_size: int
    k: int
    beam: int
    max_items: int
    max_excluded: int
    num_codes: int
    codebook_size: int
    state_width: int

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError("every size must be at least 1")
        if self.max_excluded & (self.max_excluded - 1):
            raise ValueError("max_excluded must be a power of two")


class CapturedDecode:
    """The k best items of up to `batch_size` requests, again and again from the same memory.

    `start(state_BD)` begins the decoding of B states (float32 [B, D]) and gives the callable that
    `models.decoding.beam_search.beam_search` takes (`DecoderTables.start(state_BD).logits`). It must be made
    of operations that a CUDA graph can hold, on weights that stay where they are.
    """

    def __init__(
        self, start: Callable[[Tensor], CodeLogits], sizes: DecodeSizes, device: torch.device
    ) -> None:
        self.sizes = sizes
        self._start = start
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: tuple[Tensor, Tensor] | None = None
        batch_size, levels = sizes.batch_size, range(sizes.num_codes)
        self._state_BD = torch.zeros(batch_size, sizes.state_width, device=device)
        self._children = [self._no_children(1 if level == 0 else sizes.max_items) for level in levels]
        self._excluded = [self._no_exclusion() for _ in levels]
        self._row_N = torch.zeros(sizes.max_items, dtype=torch.int64, device=device)
        self._node_NC = np.zeros((0, sizes.num_codes), np.int64)
        self._available_N = np.zeros(0, np.bool_)

    def load(self, codes_NC: Int64Array, available_N: npt.NDArray[np.bool_]) -> None:
        """Searches these items from the next call on: distinct int64 codes [N, C], bool [N].

        Raises ValueError for more than `max_items`.
        """
        if len(codes_NC) > self.sizes.max_items:
            raise ValueError(f"{len(codes_NC)} items, made for {self.sizes.max_items}")
        order_N = np.lexsort(codes_NC.T[::-1])
        sorted_NC = codes_NC[order_N]
        parent_N = np.zeros(len(codes_NC), np.int64)
        self._available_N = available_N.copy()
        self._node_NC = np.zeros_like(codes_NC)
        differs_NC = np.ones(sorted_NC.shape, np.bool_)
        differs_NC[1:] = np.logical_or.accumulate(sorted_NC[1:] != sorted_NC[:-1], axis=1)
        for level, children in enumerate(self._children):
            # nodes are numbered in the order of their codes: a parent's children stand together, sorted
            node_N = differs_NC[:, level].cumsum() - 1
            first = np.flatnonzero(differs_NC[:, level])
            num_parents = len(children.offset_P1) - 1
            offset_P1 = np.searchsorted(parent_N[first], np.arange(num_parents + 1))
            _fill(children.offset_P1, offset_P1)
            _fill(children.code_R, sorted_NC[first, level])
            _fill(children.child_R, np.arange(len(first)))
            _fill(children.live_N, np.bincount(node_N[available_N[order_N]], minlength=len(first)))
            self._node_NC[order_N, level] = node_N
            parent_N = node_N
        _fill(self._row_N, order_N)

    @torch.no_grad()
    def __call__(self, state_BD: Tensor, exclude: Sequence[Int64Array] = ()) -> tuple[Tensor, Tensor]:
        """Rows (int64 [B, k], -1 where fewer were found) and scores (float32 [B, k], -inf there), best first.

        `exclude` holds int64 rows for each request, or is empty; -1 and repeats are ignored. Raises
        ValueError for more requests, or more rows excluded from one, than this was made for, and where
        `exclude` has not one entry for each request.
        """
        batch_size = len(state_BD)
        if batch_size > self.sizes.batch_size:
            raise ValueError(f"{batch_size} requests, made for {self.sizes.batch_size}")
        if exclude and len(exclude) != batch_size:
            raise ValueError(f"{len(exclude)} lists of excluded rows for {batch_size} requests")
        self._set_excluded(exclude)
        self._state_BD.zero_()
        self._state_BD[:batch_size] = state_BD
        if self._device.type == "cuda":
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()
            assert self._out is not None
            row_BK, score_BK = self._out
        else:
            row_BK, score_BK = self._decode()
        return row_BK[:batch_size].clone(), score_BK[:batch_size].clone()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Records one decode, after some on a side stream that compile the kernels and set libraries up."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                self._decode()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self._decode()
        return graph

    def _decode(self) -> tuple[Tensor, Tensor]:
        """All levels, from the buffers."""
        sizes, device = self.sizes, self._device
        code_logits = self._start(self._state_BD)
        prefix_BKl = torch.zeros(sizes.batch_size, 1, 0, dtype=torch.int64, device=device)
        node_BK = torch.zeros(sizes.batch_size, 1, dtype=torch.int64, device=device)
        score_BK = torch.zeros(sizes.batch_size, 1, device=device)
        for level, (children, excluded) in enumerate(zip(self._children, self._excluded, strict=True)):
            batch_size, num_beams = node_BK.shape
            request_Q = torch.arange(batch_size * num_beams, device=device) // num_beams
            logits_QV = code_logits(prefix_BKl.view(batch_size * num_beams, level), request_Q)
            step = beam_step(
                logits_QV.view(batch_size, num_beams, sizes.codebook_size),
                score_BK,
                node_BK,
                children,
                width=sizes.k if level == sizes.num_codes - 1 else sizes.beam,
                excluded=excluded,
            )
            # padding has the codes 0 and is never a parent
            parent_BWl = step.parent_BW.clamp(min=0)[:, :, None].expand(-1, -1, level)
            code_BW1 = step.code_BW.clamp(min=0)[:, :, None]
            prefix_BKl = torch.cat([prefix_BKl.gather(1, parent_BWl), code_BW1], dim=2)
            node_BK, score_BK = step.child_BW, step.score_BW
        best = score_BK.sort(dim=1, descending=True, stable=True)
        leaf_BK = node_BK.gather(1, best.indices)
        row_BK = self._row_N[leaf_BK.clamp(min=0)].masked_fill(leaf_BK < 0, -1)
        return row_BK, best.values

    def _set_excluded(self, exclude: Sequence[Int64Array]) -> None:
        sizes = self.sizes
        for level, excluded in enumerate(self._excluded):
            key_BX = np.full((sizes.batch_size, sizes.max_excluded), NO_KEY, np.int64)
            count_BX = np.zeros_like(key_BX)
            for b, rows in enumerate(exclude):
                rows = np.unique(rows[rows >= 0])
                rows = rows[self._available_N[rows]]
                if len(rows) > sizes.max_excluded:
                    raise ValueError(f"{len(rows)} rows excluded, made for {sizes.max_excluded}")
                keys, counts = np.unique(self._node_NC[rows, level], return_counts=True)
                key_BX[b, : len(keys)], count_BX[b, : len(keys)] = keys, counts
            excluded.key_BX.copy_(torch.from_numpy(key_BX))
            excluded.count_BX.copy_(torch.from_numpy(count_BX))

    def _no_children(self, num_parents: int) -> Children:
        num_items = self.sizes.max_items
        return Children(
            offset_P1=torch.zeros(num_parents + 1, dtype=torch.int32, device=self._device),
            code_R=torch.zeros(num_items, dtype=torch.int16, device=self._device),
            child_R=torch.zeros(num_items, dtype=torch.int32, device=self._device),
            live_N=torch.zeros(num_items, dtype=torch.int32, device=self._device),
            max_children=min(self.sizes.codebook_size, num_items),
        )

    def _no_exclusion(self) -> Excluded:
        shape = (self.sizes.batch_size, self.sizes.max_excluded)
        return Excluded(
            key_BX=torch.full(shape, NO_KEY, dtype=torch.int64, device=self._device),
            count_BX=torch.zeros(shape, dtype=torch.int64, device=self._device),
        )


def _fill(buffer: Tensor, values: npt.NDArray[np.integer]) -> None:
    """The values, then zeros."""
    buffer.zero_()
    buffer[: len(values)] = torch.from_numpy(values)
