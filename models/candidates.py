"""Candidates: who proposed them, and how proposals of several sources become one list.

Owns the sources' numbers and the union. Does not know how a source finds what it proposes.

Shapes: M candidates, U distinct rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from models.arrays import BoolArray, Float32Array, Int64Array
from models.kernels.row_sets import union


class Source(IntEnum):
    """What brought a candidate: the numbers of `headrace.v1.CandidateSource`."""

    BEAM = 1
    DENSE = 2
    COOCCURRENCE = 3
    TRENDING = 4
    NEW = 5
    FALLBACK = 6

    @property
    def bit(self) -> int:
        """Its bit in `Candidates.source_M`."""
        return 1 << int(self)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of one request, each once.

    `row_M` int64 catalogue rows; `source_M` int64 bit mask, bit s set where source s of
    `Source` proposed the item; `beam_M` float32 SID log-probability, NaN where the
    beam did not propose it; `dense_M` float32 logit of the dense head, NaN where not computed.
    """

    row_M: Int64Array
    source_M: Int64Array
    beam_M: Float32Array
    dense_M: Float32Array

    def __len__(self) -> int:
        return len(self.row_M)

    def select(self, keep_M: BoolArray) -> "Candidates":
        """The candidates that `keep_M` (bool [M]) is true for, in their order."""
        return self if keep_M.all() else self.at(np.nonzero(keep_M)[0])

    def at(self, position_X: Int64Array) -> "Candidates":
        """The candidates at these positions (int64 [X], each once), in this order."""
        return Candidates(
            row_M=self.row_M[position_X],
            source_M=self.source_M[position_X],
            beam_M=self.beam_M[position_X],
            dense_M=self.dense_M[position_X],
        )


def unite(proposals: Sequence[Candidates]) -> Candidates:
    """The union, each row once, in order of first appearance; of two scores the first known one stays."""
    row_U, source_U, beam_U, dense_U = union(
        np.concatenate([one.row_M for one in proposals]),
        np.concatenate([one.source_M for one in proposals]),
        np.concatenate([one.beam_M for one in proposals]),
        np.concatenate([one.dense_M for one in proposals]),
    )
    return Candidates(row_M=row_U, source_M=source_U, beam_M=beam_U, dense_M=dense_U)


def proposed_by(source: Source, row_M: Int64Array) -> Candidates:
    """The int64 rows [M], proposed by one source; both float32 scores are NaN."""
    unknown_M = np.full(len(row_M), np.nan, dtype=np.float32)
    return Candidates(
        row_M=row_M,
        source_M=np.full(len(row_M), source.bit, dtype=np.int64),
        beam_M=unknown_M,
        dense_M=unknown_M,
    )
