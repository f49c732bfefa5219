"""The trie of valid semantic IDs: which code may follow which prefix, and which item a full SID is.

Two dense levels (a node is its own prefix, c0 and then c0 * V + c1), then one sparse level for each
further code: children sorted by code (CSR) plus an append-only tail of new ones, merged in when it
grows. Every node counts the available items below it, so that a search is never offered a subtree
that has none. The trie knows rows and codes; what an item is belongs to `models/catalogue.py`.

One writer; a search must not run while it writes. Views of `view()` are of the moment they were
taken, except that availability shows through.

Shape letters: N items, C codes of an item, V codebook size, Q queried nodes, R found children,
P parent nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import Int64Array

_NUM_DENSE = 2
# sorting a tail of this length takes some 50 us, merging it into a million children some 10 ms
_MAX_TAIL = 1_024


def grown(buffer: np.ndarray, size: int) -> np.ndarray:
    """The buffer, or one at least twice as long with the same beginning, that holds `size` rows."""
    if size <= len(buffer):
        return buffer
    longer = np.zeros((max(size, 2 * len(buffer), 16), *buffer.shape[1:]), buffer.dtype)
    longer[: len(buffer)] = buffer
    return longer


@dataclass(frozen=True)
class _SparseView:
    """The children of one sparse level's parents; parents past the last offset have none there."""

    offset_P: Tensor
    code_N: Tensor
    child_N: Tensor
    tail_key_N: Tensor
    tail_child_N: Tensor


class _SparseLevel:
    """The edges into one level: (parent, code) -> child, children numbered in order of arrival."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.child_of: dict[int, int] = {}  # parent * V + code -> child
        self.key_N = np.zeros(0, np.int64)
        self.sorted_key_N = np.zeros(0, np.int64)
        self.sorted_child_N = np.zeros(0, np.int64)
        self.offset_P = np.zeros(2, np.int64)

    def __len__(self) -> int:
        return len(self.child_of)

    def descend(self, parent: int, code: int) -> int:
        """The child, made when it is new."""
        key = parent * self.codebook_size + code
        child = self.child_of.get(key)
        if child is None:
            child = len(self)
            self.child_of[key] = child
            self.key_N = grown(self.key_N, child + 1)
            self.key_N[child] = key
            if len(self) - len(self.sorted_key_N) > _MAX_TAIL:
                self._merge()
        return child

    def find(self, parent: int, code: int) -> int | None:
        """The child, if there is one."""
        return self.child_of.get(parent * self.codebook_size + code)

    def _tail(self) -> tuple[Int64Array, Int64Array]:
        """Keys and children that are not merged yet, sorted by key."""
        first = len(self.sorted_key_N)
        key_N = self.key_N[first : len(self)]
        order_N = np.argsort(key_N)
        return key_N[order_N], order_N + first

    def _merge(self) -> None:
        key_N, child_N = self._tail()
        at_N = np.searchsorted(self.sorted_key_N, key_N)
        self.sorted_key_N = np.insert(self.sorted_key_N, at_N, key_N)
        self.sorted_child_N = np.insert(self.sorted_child_N, at_N, child_N)
        counts_P = np.bincount(self.sorted_key_N // self.codebook_size)
        # the last end is there twice: any later parent, clamped to it, finds an empty range
        self.offset_P = np.concatenate([[0], np.cumsum(counts_P), [len(self.sorted_key_N)]])

    def view(self, device: torch.device) -> _SparseView:
        """The edges as tensors."""
        tail_key_N, tail_child_N = self._tail()
        arrays = (
            self.offset_P,
            self.sorted_key_N % self.codebook_size,
            self.sorted_child_N,
            tail_key_N,
            tail_child_N,
        )
        return _SparseView(*(torch.from_numpy(array).to(device) for array in arrays))

    def copy(self) -> "_SparseLevel":
        """An independent level; the merged arrays are replaced, never written, and may be shared."""
        other = _SparseLevel(self.codebook_size)
        other.child_of = dict(self.child_of)
        other.key_N = self.key_N.copy()
        other.sorted_key_N, other.sorted_child_N = self.sorted_key_N, self.sorted_child_N
        other.offset_P = self.offset_P
        return other


def _expand(begin_Q: Tensor, end_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Every position of Q ranges, with the range it is of: [3, 5), [7, 8) -> (0, 0, 1), (3, 4, 7)."""
    length_Q = end_Q - begin_Q
    query_R = torch.repeat_interleave(length_Q)
    shift_Q = begin_Q - (length_Q.cumsum(0) - length_Q)
    return query_R, torch.arange(len(query_R), device=begin_Q.device) + shift_Q[query_R]


class TrieView:
    """The trie as tensors of one device, for a search. Nodes are int64 numbers, one range a depth."""

    def __init__(
        self,
        codebook_size: int,
        sparse: Sequence[_SparseView],
        num_available: Sequence[Tensor],
        row_N: Tensor,
        node_NC: Tensor,
    ) -> None:
        self.codebook_size = codebook_size
        self._sparse = sparse
        self._num_available = num_available
        self._row_N = row_N
        self._node_NC = node_NC

    @property
    def num_codes(self) -> int:
        """C, the depth of the leaves."""
        return len(self._num_available)

    def children(self, depth: int, node_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The children that lead to an available item, of nodes `node_Q` with `depth` codes behind them.

        Returns (query, code, child), int64 [R] each, sorted by query and then by code; query is a
        position in `node_Q`. The root is node 0 of depth 0.
        """
        num_available = self._num_available[depth]
        if depth < _NUM_DENSE:
            mask_QV = num_available.view(-1, self.codebook_size)[node_Q] > 0
            query_R, code_R = mask_QV.nonzero(as_tuple=True)
            return query_R, code_R, node_Q[query_R] * self.codebook_size + code_R
        query_R, code_R, child_R = self._sparse_children(self._sparse[depth - _NUM_DENSE], node_Q)
        live_R = num_available[child_R] > 0
        return query_R[live_R], code_R[live_R], child_R[live_R]

    def _sparse_children(self, level: _SparseView, node_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_Q = node_Q.clamp(max=len(level.offset_P) - 2)
        query_R, position_R = _expand(level.offset_P[at_Q], level.offset_P[at_Q + 1])
        code_R, child_R = level.code_N[position_R], level.child_N[position_R]
        if not len(level.tail_key_N):
            return query_R, code_R, child_R
        size = self.codebook_size
        tail_query_R, position_R = _expand(
            torch.searchsorted(level.tail_key_N, node_Q * size),
            torch.searchsorted(level.tail_key_N, (node_Q + 1) * size),
        )
        query_R = torch.cat([query_R, tail_query_R])
        code_R = torch.cat([code_R, level.tail_key_N[position_R] % size])
        child_R = torch.cat([child_R, level.tail_child_N[position_R]])
        order_R = torch.argsort(query_R * size + code_R)
        return query_R[order_R], code_R[order_R], child_R[order_R]

    def num_available(self, depth: int, node_Q: Tensor) -> Tensor:
        """The available items at or below nodes with `depth` >= 1 codes behind them, int64 [Q]."""
        return self._num_available[depth - 1][node_Q]

    def num_nodes(self, depth: int) -> int:
        """Above every node's number at `depth` >= 1."""
        return len(self._num_available[depth - 1])

    def nodes(self, depth: int, row_Q: Tensor) -> Tensor:
        """The node of each row at `depth` >= 1."""
        return self._node_NC[row_Q, depth - 1]

    def rows(self, leaf_Q: Tensor) -> Tensor:
        """The item row of each leaf, int64 [Q]."""
        return self._row_N[leaf_Q]


class Trie:
    """The SIDs of rows 0 to N - 1: `num_codes` >= 2 codes each, every one in [0, `codebook_size`)."""

    def __init__(self, num_codes: int, codebook_size: int) -> None:
        if num_codes < _NUM_DENSE:
            raise ValueError(f"num_codes must be at least {_NUM_DENSE}")
        self.num_codes = num_codes
        self.codebook_size = codebook_size
        self._levels = [_SparseLevel(codebook_size) for _ in range(num_codes - _NUM_DENSE)]
        dense = [np.zeros(codebook_size ** (depth + 1), np.int64) for depth in range(_NUM_DENSE)]
        self._num_available = dense + [np.zeros(0, np.int64) for _ in self._levels]
        self._row_N = np.full(codebook_size**_NUM_DENSE if num_codes == _NUM_DENSE else 0, -1, np.int64)
        self._node_NC = np.zeros((0, num_codes), np.int64)
        self._available_N = np.zeros(0, np.bool_)
        self._num_rows = 0
        self._view: TrieView | None = None
        self._view_device = torch.device("cpu")

    def __len__(self) -> int:
        return self._num_rows

    def insert(self, codes: Sequence[int], row: int, *, available: bool = True) -> None:
        """Adds the next row, which must be `len(self)`; raises ValueError if the codes are taken."""
        if row != self._num_rows:
            raise ValueError(f"row {row} is not the next, {self._num_rows}")
        if len(codes) != self.num_codes or not all(0 <= code < self.codebook_size for code in codes):
            raise ValueError(f"{tuple(codes)} is no SID of {self.num_codes} codes below {self.codebook_size}")
        holder = self.row_of(codes)
        if holder is not None:
            raise ValueError(f"the codes {tuple(codes)} belong to row {holder}")
        nodes = [codes[0], codes[0] * self.codebook_size + codes[1]]
        for level, code in zip(self._levels, codes[_NUM_DENSE:], strict=True):
            nodes.append(level.descend(nodes[-1], code))
        for depth in range(_NUM_DENSE, self.num_codes):
            self._num_available[depth] = grown(self._num_available[depth], nodes[depth] + 1)
        self._row_N = grown(self._row_N, nodes[-1] + 1)
        self._node_NC = grown(self._node_NC, row + 1)
        self._available_N = grown(self._available_N, row + 1)
        self._row_N[nodes[-1]] = row
        self._node_NC[row] = nodes
        self._num_rows += 1
        self._view = None
        self.set_available(row, available)

    def set_available(self, row: int, available: bool) -> None:
        """Says whether a search may return the row; its codes stay its own either way."""
        if not 0 <= row < self._num_rows:
            raise ValueError(f"no row {row}")
        if bool(self._available_N[row]) == available:
            return
        self._available_N[row] = available
        for depth, node in enumerate(self._node_NC[row]):
            self._num_available[depth][node] += 1 if available else -1
        if self._view is not None and self._view_device.type != "cpu":
            self._view = None

    def row_of(self, codes: Sequence[int]) -> int | None:
        """The row that has these codes, available or not."""
        node = codes[0] * self.codebook_size + codes[1]
        for level, code in zip(self._levels, codes[_NUM_DENSE:], strict=True):
            child = level.find(node, code)
            if child is None:
                return None
            node = child
        row = int(self._row_N[node])
        return None if row < 0 else row

    def view(self, device: torch.device | None = None) -> TrieView:
        """The trie as tensors, kept until the next insertion; on a CPU they share its memory."""
        device = device or torch.device("cpu")
        if self._view is None or self._view_device != device:
            self._view_device = device
            self._view = TrieView(
                self.codebook_size,
                [level.view(device) for level in self._levels],
                [torch.from_numpy(counts).to(device) for counts in self._num_available],
                torch.from_numpy(self._row_N).to(device),
                torch.from_numpy(self._node_NC[: self._num_rows]).to(device),
            )
        return self._view

    def copy(self) -> "Trie":
        """An independent trie with the same rows."""
        other = Trie(self.num_codes, self.codebook_size)
        other._levels = [level.copy() for level in self._levels]
        other._num_available = [counts.copy() for counts in self._num_available]
        other._row_N = self._row_N.copy()
        other._node_NC = self._node_NC.copy()
        other._available_N = self._available_N.copy()
        other._num_rows = self._num_rows
        return other
