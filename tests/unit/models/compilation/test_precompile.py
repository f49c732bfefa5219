"""What setup compiles is what serving calls: no service compiles at its first request."""

import numpy as np

from models.compilation.precompile import precompile
from models.ranking.config import StatisticsConfig
from models.ranking.feature_columns import fill_columns
from models.ranking.features import FeatureSource
from models.ranking.live_statistics import LiveStatistics
from models.ranking.shared_rows import SharedRows
from tests.factories import TIME_MS, make_catalogue


def test_the_columns_of_the_features_are_compiled_for_the_arrays_of_serving() -> None:
    precompile()
    compiled = list(fill_columns.signatures)  # type: ignore[attr-defined]
    assert len(compiled) >= 1
    source = FeatureSource(SharedRows(LiveStatistics(StatisticsConfig()), make_catalogue()))
    row_M = np.arange(12)[::2]
    row_M.setflags(write=False)
    for history in ([], [3, 1]):
        source.features(row_M, np.asarray(history, dtype=np.int64)[::-1], TIME_MS, TIME_MS)
    assert list(fill_columns.signatures) == compiled  # type: ignore[attr-defined]
