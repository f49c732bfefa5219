"""The live features of a ranker: one row of numbers per candidate, from statistics and catalogue.

Owns what the columns (`models.ranking.feature_columns`) are computed from. Serving and learning call the same
code, so at the same stream position both see the same numbers; their scales are fixed (log1p of counts and
times), so that a feature stays within a few units on a shop of any size.

Shapes: M candidates, R recent items, H half-lives, F features, T history.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.row_products import products_of_rows
from models.ranking.config import StatisticsConfig
from models.ranking.feature_columns import FeatureInputs, column_names, fill_columns
from models.ranking.shared_rows import SharedRows


def feature_names(config: StatisticsConfig) -> tuple[str, ...]:
    """The F names, in column order."""
    return column_names(config.half_lives_s)


class FeatureSource:
    """The features of catalogue rows, from one catalogue and one set of live statistics."""

    def __init__(self, rows: SharedRows) -> None:
        self.statistics = rows.statistics
        self.catalogue = rows.catalogue
        self.names = feature_names(rows.statistics.config)
        self._rows = rows

    def features(
        self, row_M: Int64Array, history_T: Int64Array, last_event_ms: int, time_ms: int
    ) -> Float32Array:
        """Float32 [M, F] of the distinct catalogue rows `row_M` for a user at `time_ms`.

        `history_T` are the user's rows, oldest first, the last event at `last_event_ms` (unused when
        there is none). Only what was consumed before this call is in the numbers. "Now" is no later
        than the newest consumed event: what is not streamed does not age, so a silent night or a
        replay of old events leaves the features where the model learned them.
        """
        inputs = self._inputs(row_M, history_T, last_event_ms, min(time_ms, self.statistics.newest_ms))
        out_MF = np.empty((len(row_M), len(self.names)), dtype=np.float32)
        fill_columns(inputs, out_MF)
        return out_MF

    def _inputs(
        self, row_M: Int64Array, history_T: Int64Array, last_event_ms: int, time_ms: int
    ) -> FeatureInputs:
        newest_R = history_T[-self.statistics.config.num_recent_items :][::-1]
        # copies: contiguous and writable, whatever the caller's are
        candidate_M, recent_R = np.array(row_M, dtype=np.int64), np.array(newest_R, dtype=np.int64, order="C")
        own_M = self._rows.own(row_M)
        items = self.statistics.items(own_M, time_ms)
        tie_RM, share_RM = self.statistics.ties(self._rows.own(recent_R), own_M, time_ms)
        return FeatureInputs(
            count_MH=items.count_MH,
            total_M=items.total_M,
            first_ms_M=items.first_ms_M,
            last_ms_M=items.last_ms_M,
            announced_ms_M=self.catalogue.announced_ms_N[row_M],
            tie_RM=tie_RM,
            share_RM=share_RM,
            cosine_RM=products_of_rows(self.catalogue.content_NE.numpy(), recent_R, candidate_M),
            row_M=candidate_M,
            history_T=np.array(history_T, dtype=np.int64),
            last_event_ms=last_event_ms,
            time_ms=time_ms,
        )
