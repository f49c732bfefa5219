"""Small sets of catalogue rows on a CPU, compiled: unions, first appearances, shares by row.

What is asked for a request costs time with its own rows, never with the catalogue. A set is a table of
twice as many places, probed from a row's own place on (open addressing).

Shapes: X rows that may repeat, U distinct rows, E excluded rows, N catalogue rows, R and J rows and
columns of a table of neighbours."""

import numpy as np

from models.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from models.kernels.compiled import compiled

FREE = np.iinfo(np.int64).min
_MIXER = 2654435761  # Knuth's multiplicative hash


@compiled
def empty_places(num_rows: int) -> Int64Array:
    """A free table for `num_rows` rows: int64 [a power of two]."""
    size = 8
    while size < 2 * num_rows:
        size *= 2
    return np.full(size, FREE, np.int64)


@compiled
def place_of(row: int, row_P: Int64Array) -> int:
    """Where the row is in a table, or the free place where it belongs."""
    place = (row * _MIXER) & (len(row_P) - 1)
    while row_P[place] != row and row_P[place] != FREE:
        place = (place + 1) & (len(row_P) - 1)
    return place


@compiled
def open_positions(row_X: Int64Array, available_N: BoolArray, exclude_E: Int64Array) -> Int64Array:
    """The positions of what may be answered, int64, ascending: rows that are available, not among
    `exclude_E`, and there for the first time. What is no row is none of these."""
    known_P = empty_places(len(row_X) + len(exclude_E))
    for row in exclude_E:
        known_P[place_of(row, known_P)] = row
    position_U = np.empty(len(row_X), np.int64)
    num_found = 0
    for x in range(len(row_X)):
        row = row_X[x]
        if row < 0 or row >= len(available_N) or not available_N[row]:
            continue
        place = place_of(row, known_P)
        if known_P[place] == FREE:
            known_P[place] = row
            position_U[num_found] = x
            num_found += 1
    return position_U[:num_found]


@compiled
def union(
    row_X: Int64Array, source_X: Int64Array, beam_X: Float32Array, dense_X: Float32Array
) -> tuple[Int64Array, Int64Array, Float32Array, Float32Array]:
    """Each row once, in order of first appearance, with the bits of all its sources (int64 [U]) and the
    first beam and dense score that is a number (float32 [U]), else NaN."""
    row_P = empty_places(len(row_X))
    at_P = np.empty(len(row_P), np.int64)
    row_U, source_U = np.empty(len(row_X), np.int64), np.empty(len(row_X), np.int64)
    beam_U, dense_U = np.empty(len(row_X), np.float32), np.empty(len(row_X), np.float32)
    num_rows = 0
    for x in range(len(row_X)):
        place = place_of(row_X[x], row_P)
        if row_P[place] == FREE:
            row_P[place], at_P[place] = row_X[x], num_rows
            row_U[num_rows], source_U[num_rows] = row_X[x], source_X[x]
            beam_U[num_rows], dense_U[num_rows] = beam_X[x], dense_X[x]
            num_rows += 1
            continue
        u = at_P[place]
        source_U[u] |= source_X[x]
        if np.isnan(beam_U[u]):
            beam_U[u] = beam_X[x]
        if np.isnan(dense_U[u]):
            dense_U[u] = dense_X[x]
    return row_U[:num_rows], source_U[:num_rows], beam_U[:num_rows], dense_U[:num_rows]


@compiled
def summed_by_row(neighbour_RJ: Int64Array, share_RJ: Float64Array) -> tuple[Int64Array, Float64Array]:
    """The neighbours with a share above 0, int64 [U], and the sums of their shares, float64 [U]."""
    row_P = empty_places(neighbour_RJ.size)
    at_P = np.empty(len(row_P), np.int64)
    row_U, sum_U = np.empty(neighbour_RJ.size, np.int64), np.empty(neighbour_RJ.size)
    num_rows = 0
    for r in range(neighbour_RJ.shape[0]):
        for j in range(neighbour_RJ.shape[1]):
            if not share_RJ[r, j] > 0.0:
                continue
            row = neighbour_RJ[r, j]
            place = place_of(row, row_P)
            if row_P[place] == FREE:
                row_P[place], at_P[place] = row, num_rows
                row_U[num_rows], sum_U[num_rows] = row, 0.0
                num_rows += 1
            sum_U[at_P[place]] += share_RJ[r, j]
    return row_U[:num_rows], sum_U[:num_rows]
