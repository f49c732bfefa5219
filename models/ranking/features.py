"""The live features of a ranker: one row of numbers per candidate, from statistics and catalogue.

Owns which numbers there are, their names and their fixed scales (log1p of counts and times, so that a
feature stays within a few units on a shop of any size): one table of names and compiled columns. Serving and
learning read the same table, so at the same stream position both see the same numbers.

Shapes: M candidates, R recent items, H half-lives, F features, T history.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.catalogue.index import CatalogueIndex
from models.ranking import feature_columns as columns
from models.ranking.config import StatisticsConfig
from models.ranking.feature_columns import FeatureInputs
from models.ranking.live_statistics import LiveStatistics

Column = Callable[[FeatureInputs, int, Float32Array], None]
"""`column(inputs, half_life, out_M)` writes one feature of all candidates; `half_life` is a position in
`half_lives_s`, for the columns that are of one."""


@dataclass(frozen=True)
class Feature:
    """One column of the table."""

    name: str
    column: Column
    half_life: int = 0


def feature_table(config: StatisticsConfig) -> tuple[Feature, ...]:
    """The F features, in column order."""
    half_lives = config.half_lives_s
    counts = (
        Feature(f"log_count_{half_life_s / 3600:g}h", columns.log_count, h)
        for h, half_life_s in enumerate(half_lives)
    )
    return (
        *counts,
        Feature("log_count_total", columns.log_count_total),
        Feature("momentum", columns.momentum, len(half_lives) - 1),
        Feature("tie_sum", columns.tie_sum),
        Feature("tie_max", columns.tie_max),
        Feature("tie_to_last", columns.tie_to_last),
        Feature("tie_share_sum", columns.tie_share_sum),
        Feature("tie_share_max", columns.tie_share_max),
        Feature("log_hours_since_event", columns.log_hours_since_event),
        Feature("log_days_since_announced", columns.log_days_since_announced),
        Feature("no_event_yet", columns.no_event_yet),
        Feature("announced_no_event_yet", columns.announced_no_event_yet),
        Feature("cosine_to_last", columns.cosine_to_last),
        Feature("cosine_to_recent_max", columns.cosine_to_recent_max),
        Feature("in_history", columns.in_history),
        Feature("log_history_length", columns.log_history_length),
        Feature("log_hours_since_user_event", columns.log_hours_since_user_event),
    )


def feature_names(config: StatisticsConfig) -> tuple[str, ...]:
    """The F names, in column order."""
    return tuple(feature.name for feature in feature_table(config))


class FeatureSource:
    """The features of catalogue rows, from one catalogue and one set of live statistics."""

    def __init__(self, statistics: LiveStatistics, catalogue: CatalogueIndex) -> None:
        self.statistics = statistics
        self.catalogue = catalogue
        self.table = feature_table(statistics.config)
        self._own_row_N = np.empty(0, dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """The F names, in column order."""
        return tuple(feature.name for feature in self.table)

    def own_rows(self, row_M: Int64Array) -> Int64Array:
        """The statistics' row of each catalogue row, int64 [M]; -1 for an item without events."""
        if len(self._own_row_N) < len(self.catalogue):
            missing = self.catalogue.item_ids[len(self._own_row_N) :]
            self._own_row_N = np.concatenate([self._own_row_N, self.statistics.rows(missing)])
        own_M = self._own_row_N[row_M]
        unknown = np.nonzero(own_M < 0)[0]
        if len(unknown):
            own_M[unknown] = self.statistics.rows([self.catalogue.item_ids[row_M[m]] for m in unknown])
            self._own_row_N[row_M] = own_M
        return own_M

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
        out_FM = np.empty((len(self.table), len(row_M)), dtype=np.float32)
        for out_M, feature in zip(out_FM, self.table, strict=True):
            feature.column(inputs, feature.half_life, out_M)
        return np.ascontiguousarray(out_FM.T)

    def _inputs(
        self, row_M: Int64Array, history_T: Int64Array, last_event_ms: int, time_ms: int
    ) -> FeatureInputs:
        own_M = self.own_rows(row_M)
        recent_R = history_T[-self.statistics.config.num_recent_items :][::-1]
        items = self.statistics.items(own_M, time_ms)
        tie_RM, share_RM = self.statistics.ties(self.own_rows(recent_R), own_M, time_ms)
        content_NE = np.asarray(self.catalogue.content_NE)
        return FeatureInputs(
            count_MH=items.count_MH,
            total_M=items.total_M,
            first_ms_M=items.first_ms_M,
            last_ms_M=items.last_ms_M,
            announced_ms_M=np.asarray(self.catalogue.announced_ms_N)[row_M],
            tie_RM=tie_RM,
            share_RM=share_RM,
            cosine_RM=content_NE[recent_R] @ content_NE[row_M].T,
            row_M=np.array(row_M, dtype=np.int64),
            history_T=np.array(history_T, dtype=np.int64),
            last_event_ms=last_event_ms,
            time_ms=time_ms,
        )
