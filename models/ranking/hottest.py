"""The hottest rows at hand, so that asking for them does not mean looking at all the others.

Owns which rows can still be among the hottest. It relies on heats that only rise: whatever is among the
hottest now once reached what was then the least of them. Does not know what heat is.

Shapes: N items.
"""

import numpy as np

from models.arrays import Float64Array, Int64Array

# The heat of a row that is never among the hottest: finite, since a checkpoint refuses infinities.
COLD = -1e300


class Hottest:
    """Keeps the `size` hottest rows and those that joined them since."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: set[int] = set()
        self._least = COLD
        self._limit = 2 * size
        self._in_order: Int64Array | None = None  # the rows, best first, until a heat among them changes

    def note(self, row: int, heat_N: Float64Array) -> None:
        """Tells it that the heat of one row rose to `heat_N[row]` (float64)."""
        if heat_N[row] >= self._least:
            self._in_order = None
            self._rows.add(row)
            if len(self._rows) > self._limit:
                self.begin(heat_N)

    def begin(self, heat_N: Float64Array) -> None:
        """Looks at all rows (float64 heats) once. Many rows of one heat may be kept; then as many more fit
        before the next look."""
        self._rows = set(_hottest(heat_N, self.size).tolist())
        is_all = len(self._rows) < self.size
        self._least = COLD if is_all else float(heat_N[list(self._rows)].min())
        self._limit = 2 * max(self.size, len(self._rows))
        self._in_order = None

    def best(self, k: int, heat_N: Float64Array) -> Int64Array:
        """The at most `k` hottest rows, int64, best first, ties by row; looks at all (float64) heats only if
        `k` > `size`."""
        if k > self.size:
            return _ordered(_hottest(heat_N, k), heat_N)[:k]
        if self._in_order is None:
            self._in_order = _ordered(np.asarray(list(self._rows), dtype=np.int64), heat_N)
        return self._in_order[:k]


def _ordered(row_X: Int64Array, heat_N: Float64Array) -> Int64Array:
    """The rows by heat, best first, ties by row."""
    ordered: Int64Array = row_X[np.lexsort((row_X, -heat_N[row_X]))]
    return ordered


def _hottest(heat_N: Float64Array, k: int) -> Int64Array:
    """All rows at least as hot as the k-th hottest, none that is cold; in order of rows."""
    threshold = np.partition(heat_N, len(heat_N) - k)[len(heat_N) - k] if k < len(heat_N) else COLD
    return np.nonzero((heat_N >= threshold) & (heat_N > COLD))[0].astype(np.int64)
