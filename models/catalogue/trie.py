"""The trie of valid semantic IDs: which code may follow which prefix, and which item a full SID is.

Two dense levels (a node is its own prefix, c0 and then c0 * V + c1), then one sparse level for each further
code (`models/catalogue/trie_level.py`). Every node counts the available items below it, so that a search is
never offered a subtree that has none. The trie knows rows and codes; what an item is belongs to
`models/catalogue/index.py`.

One writer; a search must not run while it writes.

Shape letters: N items, C codes of an item, V codebook size, P parent nodes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.arrays import Int32Array, Int64Array
from models.catalogue.trie_level import SparseLevel, grown
from models.kernels.level import Level

NUM_DENSE = 2


class Trie:
    """The SIDs of rows 0 to N - 1: `num_codes` >= 2 codes each, every one in [0, `codebook_size`)."""

    def __init__(self, num_codes: int, codebook_size: int) -> None:
        if num_codes < NUM_DENSE:
            raise ValueError(f"num_codes must be at least {NUM_DENSE}")
        self.num_codes = num_codes
        self.codebook_size = codebook_size
        self._levels = [SparseLevel(codebook_size) for _ in range(num_codes - NUM_DENSE)]
        dense = [np.zeros(codebook_size ** (depth + 1), np.int32) for depth in range(NUM_DENSE)]
        self._num_available = dense + [np.zeros(0, np.int32) for _ in self._levels]
        self._row_N = np.full(codebook_size**NUM_DENSE if num_codes == NUM_DENSE else 0, -1, np.int32)
        self._node_NC = np.zeros((0, num_codes), np.int32)
        self._available_N = np.zeros(0, np.bool_)
        self._num_rows = 0
        self._dense_levels: list[Level] | None = None
        self._view: list[Level] | None = None

    def __len__(self) -> int:
        return self._num_rows

    def insert(self, codes: Sequence[int], row: int, *, available: bool = True) -> None:
        """Adds the next row, which must be `len(self)`.

        Raises ValueError for another row, codes that are no SID, or codes that are taken.
        """
        if row != self._num_rows:
            raise ValueError(f"row {row} is not the next, {self._num_rows}")
        if len(codes) != self.num_codes or not all(0 <= code < self.codebook_size for code in codes):
            raise ValueError(f"{tuple(codes)} is no SID of {self.num_codes} codes below {self.codebook_size}")
        holder = self.row_of(codes)
        if holder is not None:
            raise ValueError(f"the codes {tuple(codes)} belong to row {holder}")
        nodes = [codes[0], codes[0] * self.codebook_size + codes[1]]
        for level, code in zip(self._levels, codes[NUM_DENSE:], strict=True):
            nodes.append(level.descend(nodes[-1], code))
        self._make_room(row + 1)
        self._row_N[nodes[-1]] = row
        self._node_NC[row] = nodes
        self._num_rows += 1
        self._view = None
        self.set_available(row, available)

    def insert_many(self, codes_NC: Int64Array, available_N: npt.NDArray[np.bool_]) -> None:
        """Adds the next N rows at once, int64 [N, C] and bool [N]: what N calls of `insert` would do.

        Raises ValueError, and adds nothing, when codes are out of range, taken, or there twice.
        """
        size, num_new = self.codebook_size, len(codes_NC)
        if codes_NC.shape[1:] != (self.num_codes,) or ((codes_NC < 0) | (codes_NC >= size)).any():
            raise ValueError(f"these are no SIDs of {self.num_codes} codes below {size}")
        if len(np.unique(codes_NC, axis=0)) < num_new:
            raise ValueError("the same codes are there twice")
        if self._num_rows and any(self.row_of(codes) is not None for codes in codes_NC.tolist()):
            raise ValueError("some of the codes belong to a row already")
        nodes = [codes_NC[:, 0], codes_NC[:, 0] * size + codes_NC[:, 1]]
        for level, code_N in zip(self._levels, codes_NC.T[NUM_DENSE:], strict=True):
            nodes.append(level.descend_many(nodes[-1], code_N))
        first, self._num_rows = self._num_rows, self._num_rows + num_new
        self._make_room(self._num_rows)
        rows_N = np.arange(first, self._num_rows)
        self._row_N[nodes[-1]] = rows_N
        self._node_NC[rows_N] = np.stack(nodes, axis=1)
        self._available_N[rows_N] = available_N
        for counts, node_N in zip(self._num_available, nodes, strict=True):
            np.add.at(counts, node_N[available_N], 1)
        self._view, self._dense_levels = None, None

    def set_available(self, row: int, available: bool) -> None:
        """Says whether a search may return the row; its codes stay its own either way."""
        if not 0 <= row < self._num_rows:
            raise ValueError(f"no row {row}")
        if bool(self._available_N[row]) == available:
            return
        self._available_N[row] = available
        change = 1 if available else -1
        for depth, node in enumerate(self._node_NC[row].tolist()):
            counts = self._num_available[depth]
            counts[node] += change
            if depth < NUM_DENSE and counts[node] == max(change, 0):
                self._dense_levels = None  # the node opened or closed
        self._view = None

    def row_of(self, codes: Sequence[int]) -> int | None:
        """The row that has these codes, available or not."""
        node = codes[0] * self.codebook_size + codes[1]
        for level, code in zip(self._levels, codes[NUM_DENSE:], strict=True):
            child = level.find(node, code)
            if child is None:
                return None
            node = child
        row = int(self._row_N[node])
        return None if row < 0 else row

    def codes_of(self, row_M: Int64Array) -> Int64Array:
        """The codes that lead to these rows (int64 [M], each in range), int64 [M, C]; -1 if none do."""
        node_MC = self._node_NC[row_M].astype(np.int64)
        codes_MC = np.empty_like(node_MC)
        codes_MC[:, 0], codes_MC[:, 1] = np.divmod(node_MC[:, 1], self.codebook_size)
        for depth, level in enumerate(self._levels, NUM_DENSE):
            codes_MC[:, depth] = level.codes_of(node_MC[:, depth])
        codes_MC[self._row_N[node_MC[:, -1]] != row_M] = -1
        return codes_MC

    @property
    def levels(self) -> list[Level]:
        """The edges into each depth, for a search, as they are now; kept until the next change."""
        if self._view is None:
            if self._dense_levels is None:
                self._dense_levels = self._open_edges()
            sparse = [
                level.level(counts[: len(level)])
                for level, counts in zip(self._levels, self._num_available[NUM_DENSE:], strict=True)
            ]
            self._view = self._dense_levels + sparse
        return self._view

    @property
    def row_N(self) -> Int32Array:
        """The row of each leaf, int32, by its node."""
        return self._row_N

    @property
    def node_NC(self) -> Int32Array:
        """The node of each row at each depth, int32 [N, C]."""
        return self._node_NC[: self._num_rows]

    @property
    def available_N(self) -> npt.NDArray[np.bool_]:
        """Which rows a search may return, bool [N]."""
        return self._available_N[: self._num_rows]

    @property
    def num_bytes(self) -> int:
        """The memory that a search reads."""
        return sum(level.num_bytes for level in self.levels) + self._row_N.nbytes + self.node_NC.nbytes

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

    def _make_room(self, num_rows: int) -> None:
        for depth, level in enumerate(self._levels, NUM_DENSE):
            self._num_available[depth] = grown(self._num_available[depth], len(level))
        if self._levels:
            self._row_N = grown(self._row_N, len(self._levels[-1]))
        self._node_NC = grown(self._node_NC, num_rows)
        self._available_N = grown(self._available_N, num_rows)

    def _open_edges(self) -> list[Level]:
        """The dense levels' edges to nodes with something available below them."""
        size, nothing, levels = self.codebook_size, np.zeros(0, np.int64), []
        for depth, live_N in enumerate(self._num_available[:NUM_DENSE]):
            child_N = np.nonzero(live_N)[0].astype(np.int32)
            offset_P = np.searchsorted(child_N, np.arange(size**depth + 1) * size).astype(np.int32)
            offset_P = np.append(offset_P, offset_P[-1:])
            levels.append(
                Level(offset_P, (child_N % size).astype(np.int16), child_N, nothing, nothing, live_N)
            )
        return levels
