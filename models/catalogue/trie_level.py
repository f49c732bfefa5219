"""One level of the trie below the dense ones: which code leads from which parent to which child.

Children sorted by (parent, code) in CSR form, plus a tail of new ones that is merged in when it has
grown. Children are numbered in order of arrival and keep their number. Small integers: a million items
take about 45 MB with all levels and counts (`tests/benchmarks/bench_decode.py`), and two bytes more for each
child's own code.

Shape letters: N edges or children, P parent nodes.
"""

import numpy as np

from models.arrays import Int16Array, Int32Array, Int64Array
from models.kernels.level import Level

# sorting a tail of this length takes some 50 us, merging it into a million children some 10 ms
MAX_TAIL = 1_024


def grown(buffer: np.ndarray, size: int) -> np.ndarray:
    """The buffer, or a longer one (by a quarter at least) with the same beginning and zeros behind it, that
    holds `size` rows; dtype and further dimensions stay."""
    if size <= len(buffer):
        return buffer
    longer = np.zeros((max(size, len(buffer) + len(buffer) // 4, 16), *buffer.shape[1:]), buffer.dtype)
    longer[: len(buffer)] = buffer
    return longer


class SparseLevel:
    """The edges into one level: (parent, code) -> child."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self._num_children = 0
        self._tail: dict[int, int] = {}  # parent * V + code -> child, not merged yet
        self._code_N = np.zeros(0, np.int16)
        self._child_N = np.zeros(0, np.int32)
        self._code_of_N = np.zeros(0, np.int16)  # by child
        self._offset_P = np.zeros(2, np.int32)

    def __len__(self) -> int:
        return self._num_children

    def descend(self, parent: int, code: int) -> int:
        """The child; it is made if it is new."""
        child = self.find(parent, code)
        if child is None:
            child = self._num_children
            self._num_children += 1
            self._note_codes(np.array([child]), np.array([code]))
            self._tail[parent * self.codebook_size + code] = child
            if len(self._tail) > MAX_TAIL:
                self._merge()
        return child

    def descend_many(self, parent_N: Int64Array, code_N: Int64Array) -> Int64Array:
        """The child of each pair, int64 [N]; new ones are numbered in order of appearance."""
        self._merge()
        key_N = parent_N * self.codebook_size + code_N
        unique_U, first_U, inverse_N = np.unique(key_N, return_index=True, return_inverse=True)
        merged_key_N = self._merged_keys()
        at_U = np.searchsorted(merged_key_N, unique_U)
        inside_U = np.minimum(at_U, max(0, len(merged_key_N) - 1))
        is_known_U = np.zeros(len(unique_U), np.bool_)
        child_U = np.zeros(len(unique_U), np.int64)
        if len(merged_key_N):
            is_known_U = merged_key_N[inside_U] == unique_U
            child_U[is_known_U] = self._child_N[inside_U[is_known_U]]
        new = np.nonzero(~is_known_U)[0]
        order = np.argsort(first_U[new], kind="stable")
        child_U[new[order]] = self._num_children + np.arange(len(new))
        self._num_children += len(new)
        self._note_codes(child_U[new], unique_U[new] % self.codebook_size)
        self._merge_in(merged_key_N, unique_U[new], child_U[new])
        return child_U[inverse_N]

    def find(self, parent: int, code: int) -> int | None:
        """The child, if there is one."""
        child = self._tail.get(parent * self.codebook_size + code)
        if child is not None:
            return child
        if parent >= len(self._offset_P) - 1:
            return None
        begin, end = int(self._offset_P[parent]), int(self._offset_P[parent + 1])
        at = begin + int(np.searchsorted(self._code_N[begin:end], code))
        return int(self._child_N[at]) if at < end and self._code_N[at] == code else None

    def codes_of(self, child_M: Int64Array) -> Int16Array:
        """The code that leads to each child (int64 [M]), int16 [M]."""
        codes_M: Int16Array = self._code_of_N[child_M]
        return codes_M

    def level(self, live_N: Int32Array) -> Level:
        """The edges as they are now, sharing this level's memory; `live_N` int32 counts by child."""
        return Level(self._offset_P, self._code_N, self._child_N, *self._sorted_tail(), live_N)

    def copy(self) -> "SparseLevel":
        """An independent level; the merged arrays are replaced, never written, and may be shared."""
        other = SparseLevel(self.codebook_size)
        other._num_children = self._num_children
        other._tail = dict(self._tail)
        other._code_N, other._child_N, other._offset_P = self._code_N, self._child_N, self._offset_P
        other._code_of_N = self._code_of_N.copy()
        return other

    def _note_codes(self, child_M: Int64Array, code_M: Int64Array) -> None:
        self._code_of_N = grown(self._code_of_N, self._num_children)
        self._code_of_N[child_M] = code_M

    def _sorted_tail(self) -> tuple[Int64Array, Int64Array]:
        key_N = np.fromiter(self._tail, np.int64, len(self._tail))
        child_N = np.fromiter(self._tail.values(), np.int64, len(self._tail))
        order_N = np.argsort(key_N)
        return key_N[order_N], child_N[order_N]

    def _merged_keys(self) -> Int64Array:
        parent_N = np.repeat(np.arange(len(self._offset_P) - 1), np.diff(self._offset_P))
        return parent_N * self.codebook_size + self._code_N

    def _merge(self) -> None:
        if self._tail:
            self._merge_in(self._merged_keys(), *self._sorted_tail())
            self._tail = {}

    def _merge_in(self, merged_key_N: Int64Array, key_N: Int64Array, child_N: Int64Array) -> None:
        """Takes new edges, sorted by key, among the merged ones."""
        at_N = np.searchsorted(merged_key_N, key_N)
        keys = np.insert(merged_key_N, at_N, key_N)
        self._child_N = np.insert(self._child_N, at_N, child_N).astype(np.int32)
        self._code_N = (keys % self.codebook_size).astype(np.int16)
        count_P = np.bincount(keys // self.codebook_size)
        # the last end is there twice: any later parent, clamped to it, finds an empty range
        self._offset_P = np.concatenate([[0], np.cumsum(count_P), [len(keys)]]).astype(np.int32)
