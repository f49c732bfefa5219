"""The edges into one level of a trie, as the kernels of a beam step read them.

How they come about is the trie's business (`models/catalogue/trie_level.py`).

Shape letters: N edges or children, P parent nodes.
"""

from typing import NamedTuple

from models.arrays import Int16Array, Int32Array, Int64Array


class Level(NamedTuple):
    """The edges into one level, and how many available items each child has below it.

    `offset_P` int32, its last entry twice: parents past it have no merged children. `code_N` int16 and
    `child_N` int32 by (parent, code). `tail_key_N` int64 (parent * V + code, ascending) and `tail_child_N`
    int64: edges that are not merged yet. `live_N` int32 by child.
    """

    offset_P: Int32Array
    code_N: Int16Array
    child_N: Int32Array
    tail_key_N: Int64Array
    tail_child_N: Int64Array
    live_N: Int32Array

    @property
    def num_bytes(self) -> int:
        """The memory of all arrays."""
        return sum(array.nbytes for array in self)
