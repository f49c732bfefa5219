"""Rows of a catalogue <-> rows of live statistics: two numberings of the same items, both in order of
arrival.

Owns the two tables, kept up to date with what has arrived on either side since, so that a request looks up no
ids. It knows neither's numbers.

Shapes: N catalogue rows, S rows of the statistics, M items.
"""

import numpy as np

from models.arrays import Int64Array
from models.catalogue.index import CatalogueIndex
from models.catalogue.trie_level import grown
from models.ranking.live_statistics import LiveStatistics


class SharedRows:
    """Where each item of `catalogue` is in `statistics`, and the other way round."""

    def __init__(self, statistics: LiveStatistics, catalogue: CatalogueIndex) -> None:
        self.statistics = statistics
        self.catalogue = catalogue
        self._own_N = np.empty(0, dtype=np.int64)
        self._row_S = np.empty(0, dtype=np.int64)
        self._num_rows = self._num_own = 0

    def own(self, row_M: Int64Array) -> Int64Array:
        """The statistics' row of each catalogue row, int64 [M]; -1 for an item without events."""
        self._follow()
        own_M: Int64Array = self._own_N[row_M]
        return own_M

    def catalogue_rows(self, own_M: Int64Array) -> Int64Array:
        """The catalogue's row of each of the statistics' (none of them -1), int64 [M]; -1 for an item that it
        does not have."""
        self._follow()
        row_M: Int64Array = self._row_S[own_M]
        return row_M

    def _follow(self) -> None:
        num_rows, num_own = len(self.catalogue), len(self.statistics)
        if num_rows == self._num_rows and num_own == self._num_own:
            return
        self._own_N, self._row_S = grown(self._own_N, num_rows), grown(self._row_S, num_own)
        new_rows, new_own = np.arange(self._num_rows, num_rows), np.arange(self._num_own, num_own)
        self._row_S[new_own] = self.catalogue.rows(self.statistics.item_ids()[self._num_own : num_own])
        self._own_N[new_rows] = self.statistics.rows(self.catalogue.item_ids[self._num_rows : num_rows])
        # what one side had already and the other has just got
        self._link(self._own_N, self._row_S[new_own], new_own)
        self._link(self._row_S, self._own_N[new_rows], new_rows)
        self._num_rows, self._num_own = num_rows, num_own

    @staticmethod
    def _link(table: Int64Array, place_M: Int64Array, value_M: Int64Array) -> None:
        table[place_M[place_M >= 0]] = value_M[place_M >= 0]
