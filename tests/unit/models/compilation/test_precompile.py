"""What setup compiles is what serving calls: no service compiles at its first request."""

import numpy as np

from models.compilation.precompile import precompile
from models.ranking.config import StatisticsConfig
from models.ranking.features import FeatureSource, feature_table
from models.ranking.live_statistics import LiveStatistics
from tests.factories import TIME_MS, make_catalogue


def test_the_columns_of_the_features_are_compiled_for_the_arrays_of_serving() -> None:
    precompile()
    columns = {feature.column for feature in feature_table(StatisticsConfig())}
    compiled = {column: list(column.signatures) for column in columns}  # type: ignore[attr-defined]
    assert all(len(signatures) >= 1 for signatures in compiled.values())
    source = FeatureSource(LiveStatistics(StatisticsConfig()), make_catalogue())
    row_M = np.arange(12)[::2]
    row_M.setflags(write=False)
    for history in ([], [3, 1]):
        source.features(row_M, np.asarray(history, dtype=np.int64)[::-1], TIME_MS, TIME_MS)
    assert {column: list(column.signatures) for column in columns} == compiled  # type: ignore[attr-defined]
