"""The live features of a ranker: one row of numbers per candidate, from statistics and catalogue.

Owns which numbers there are, their names and their fixed scales (log1p of counts and times, so that a
feature stays within a few units on a shop of any size). Serving and learning call the same function,
so at the same stream position both see the same numbers.

Shapes: M candidates, R recent items, H half-lives, F features, T history.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.catalogue.index import CatalogueIndex
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics

_HOUR_MS = 3_600_000.0
_DAY_MS = 86_400_000.0
# Ties are fractions of an event: without this, log1p would leave them all near 0.
_TIE_SCALE = 4.0


def feature_names(config: StatisticsConfig) -> tuple[str, ...]:
    """The F names, in column order."""
    counts = tuple(f"log_count_{half_life_s / 3600:g}h" for half_life_s in config.half_lives_s)
    return (
        *counts,
        "log_count_total",
        "momentum",
        "tie_sum",
        "tie_max",
        "tie_to_last",
        "tie_share_sum",
        "tie_share_max",
        "log_hours_since_event",
        "log_days_since_announced",
        "no_event_yet",
        "announced_no_event_yet",
        "cosine_to_last",
        "cosine_to_recent_max",
        "in_history",
        "log_history_length",
        "log_hours_since_user_event",
    )


class FeatureSource:
    """The features of catalogue rows, from one catalogue and one set of live statistics."""

    def __init__(self, statistics: LiveStatistics, catalogue: CatalogueIndex) -> None:
        self.statistics = statistics
        self.catalogue = catalogue
        self.names = feature_names(statistics.config)
        self._own_row_N = np.empty(0, dtype=np.int64)

    def own_rows(self, row_M: Int64Array) -> Int64Array:
        """The statistics' row of each catalogue row, -1 for an item without events."""
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
        time_ms = min(time_ms, self.statistics.newest_ms)
        own_M = self.own_rows(row_M)
        recent_R = history_T[-self.statistics.config.num_recent_items :][::-1]
        items = self.statistics.items(own_M, time_ms)
        tie_RM, share_RM = self.statistics.ties(self.own_rows(recent_R), own_M, time_ms)
        cosine_RM = self._cosine(recent_R, row_M)
        never_M = items.last_ms_M < 0
        announced_M = np.asarray(self.catalogue.announced_ms_N)[row_M]
        birth_M = np.where(announced_M > 0, announced_M, items.first_ms_M)
        num_half_lives = items.count_MH.shape[1]
        out_FM = np.empty((len(self.names), len(row_M)))
        counts, momentum = out_FM[: num_half_lives + 1], num_half_lives + 1
        counts[:num_half_lives], counts[-1] = items.count_MH.T, items.total_M
        np.log1p(counts, out=counts)
        np.subtract(counts[0], counts[num_half_lives - 1], out=out_FM[momentum])
        live = out_FM[momentum + 1 : momentum + 8]
        np.multiply(_TIE_SCALE, tie_RM.sum(0), out=live[0])
        np.multiply(_TIE_SCALE, tie_RM.max(0, initial=0.0), out=live[1])
        np.multiply(_TIE_SCALE, tie_RM[:1].sum(0), out=live[2])
        np.multiply(100.0, share_RM.sum(0), out=live[3])
        np.multiply(100.0, share_RM.max(0, initial=0.0), out=live[4])
        np.divide(np.maximum(time_ms - items.last_ms_M, 0), _HOUR_MS, out=live[5])
        np.divide(np.maximum(time_ms - birth_M, 0), _DAY_MS, out=live[6])
        live[5, never_M], live[6, birth_M < 0] = 0.0, 0.0
        np.log1p(live, out=live)
        rest = out_FM[momentum + 8 :]
        rest[0], rest[1] = never_M, never_M & (announced_M > 0)
        rest[2] = cosine_RM[:1].sum(0)
        rest[3] = cosine_RM.max(0, initial=-1.0) if len(recent_R) else 0.0
        rest[4] = (row_M[:, None] == history_T).any(axis=1)
        rest[5] = np.log1p(len(history_T))
        rest[6] = np.log1p(max(time_ms - last_event_ms, 0) / _HOUR_MS) if len(history_T) else 0.0
        return out_FM.T.astype(np.float32, order="C")

    def _cosine(self, recent_R: Int64Array, row_M: Int64Array) -> Float32Array:
        """Cosine of the (normalised) content of each recent item and each candidate, [R, M]."""
        content_NE = np.asarray(self.catalogue.content_NE)
        cosine: Float32Array = content_NE[recent_R] @ content_NE[row_M].T
        return cosine
