"""The columns of live statistics, compiled: as a request reads them, and as an event changes their ties.

What is read is of a few rows, decayed to one moment.

Shapes: N own rows, M items asked for, R recent items, J neighbours kept per item, H half-lives.
"""

from typing import NamedTuple

import numpy as np

from models.arrays import Float64Array, Int64Array
from models.kernels.compiled import compiled
from models.kernels.row_sets import empty_places, place_of


class ItemColumns(NamedTuple):
    """The counts (float64) and, int64 ms, the time to which they are decayed and those of first and last
    wish."""

    count_NH: Float64Array
    total_N: Float64Array
    reference_N: Int64Array
    first_N: Int64Array
    last_N: Int64Array


class TieColumns(NamedTuple):
    """The neighbours' own rows (int64), the ties' weights (float64) and the time to which they are
    decayed."""

    neighbour_NJ: Int64Array
    weight_NJ: Float64Array
    paired_N: Int64Array


@compiled
def read_items(
    columns: ItemColumns, half_life_H: Float64Array, row_M: Int64Array, time_ms: int
) -> tuple[Float64Array, Float64Array, Int64Array, Int64Array]:
    """Decayed counts [M, H], totals, first and last times [M]; zeros and -1 times for row -1."""
    num_items, num_half_lives = len(row_M), len(half_life_H)
    count_MH, total_M = np.zeros((num_items, num_half_lives)), np.zeros(num_items)
    first_ms_M, last_ms_M = np.full(num_items, -1, np.int64), np.full(num_items, -1, np.int64)
    for m in range(num_items):
        row = row_M[m]
        if row < 0:
            continue
        lag_ms = max(time_ms - columns.reference_N[row], 0)
        for h in range(num_half_lives):
            count_MH[m, h] = columns.count_NH[row, h] * np.exp2(-lag_ms / half_life_H[h])
        total_M[m] = columns.total_N[row]
        first_ms_M[m], last_ms_M[m] = columns.first_N[row], columns.last_N[row]
    return count_MH, total_M, first_ms_M, last_ms_M


@compiled
def read_ties(
    columns: TieColumns, half_life_ms: float, recent_R: Int64Array, row_M: Int64Array, time_ms: int
) -> tuple[Float64Array, Float64Array]:
    """The decayed weight of each tie, and its share of the recent item's ties, [R, M]; 0 where there is none.

    Of `recent_R` and `row_M` only -1 may repeat: it has no ties.
    """
    row_P = empty_places(len(row_M))
    at_P = np.empty(len(row_P), np.int64)
    for m in range(len(row_M)):
        if row_M[m] >= 0:
            place = place_of(row_M[m], row_P)
            row_P[place], at_P[place] = row_M[m], m
    weight_RM, share_RM = np.zeros((len(recent_R), len(row_M))), np.zeros((len(recent_R), len(row_M)))
    for r in range(len(recent_R)):
        recent = recent_R[r]
        if recent < 0:
            continue
        total = max(columns.weight_NJ[recent].sum(), 1e-12)
        decay = np.exp2(-max(time_ms - columns.paired_N[recent], 0) / half_life_ms)
        for j in range(columns.neighbour_NJ.shape[1]):
            neighbour, weight = columns.neighbour_NJ[recent, j], columns.weight_NJ[recent, j]
            place = place_of(neighbour, row_P)
            if weight > 0.0 and row_P[place] == neighbour:
                weight_RM[r, at_P[place]] = weight * decay
                share_RM[r, at_P[place]] = weight / total
    return weight_RM, share_RM


@compiled
def _fade(ties: TieColumns, half_life: float, row: int, time_ms: int) -> float:
    """Decays the ties of a row to `time_ms` where that is later; what an earlier one weighs by then."""
    lag_ms = time_ms - ties.paired_N[row]
    if lag_ms <= 0:
        return float(np.exp2(lag_ms / half_life))
    ties.weight_NJ[row] *= np.exp2(-lag_ms / half_life)
    ties.paired_N[row] = time_ms
    return 1.0


@compiled
def _add_to_tie(ties: TieColumns, row: int, other: int, gain: float) -> None:
    """The tie itself where there is one, else in place of the weakest: empty places weigh 0."""
    neighbour_J, weight_J = ties.neighbour_NJ[row], ties.weight_NJ[row]
    slot = 0
    for j in range(len(neighbour_J)):
        if neighbour_J[j] == other:
            weight_J[j] += gain
            return
        if weight_J[j] < weight_J[slot]:
            slot = j
    neighbour_J[slot], weight_J[slot] = other, gain


@compiled
def strengthen_ties(
    ties: TieColumns,
    half_life: float,
    other_R: Int64Array,
    row: int,
    time_ms: int,
    age: int,
    recency_decay: float,
    backward_weight: float,
) -> None:
    """Strengthens the ties between a row and the distinct `other_R` before it, newest first, both ways.

    The newest of `other_R` came `age` wishes before the one right before `row`.
    """
    for place, other in enumerate(other_R):
        late = _fade(ties, half_life, other, time_ms)
        _add_to_tie(ties, other, row, recency_decay ** (age + place) * late)
    late = _fade(ties, half_life, row, time_ms)
    for place, other in enumerate(other_R):
        _add_to_tie(ties, row, other, backward_weight * recency_decay ** (age + place) * late)
