"""Live features against one obvious formula for each item and name."""

import math

import numpy as np
import pytest

from models.batch import ACTION_NAMES
from models.ranking.config import StatisticsConfig
from models.ranking.features import FeatureSource, feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.shared_rows import SharedRows
from tests.factories import NUM_ITEMS, TIME_MS, make_catalogue

CLICK, IMPRESSION = ACTION_NAMES.index("click"), ACTION_NAMES.index("impression")
HOUR, DAY = 3_600_000, 86_400_000


def slowly(
    source: FeatureSource, row: int, history: list[int], last_ms: int, time_ms: int
) -> dict[str, float]:
    """The features of one row, each on its own."""
    statistics, catalogue = source.statistics, source.catalogue
    time_ms = min(time_ms, statistics.newest_ms)
    recent = history[-statistics.config.num_recent_items :][::-1]
    own = statistics.rows([catalogue.item_ids[row]])
    item = statistics.items(own, time_ms)
    ties = [statistics.ties(statistics.rows([catalogue.item_ids[other]]), own, time_ms) for other in recent]
    tie, share = [float(weight[0, 0]) for weight, _ in ties], [float(part[0, 0]) for _, part in ties]
    content_NE = catalogue.content_NE
    cosine = [float(content_NE[other] @ content_NE[row]) for other in recent]
    never, announced = item.last_ms_M[0] < 0, int(catalogue.announced_ms_N[row])
    birth = announced if announced > 0 else int(item.first_ms_M[0])
    counts = [math.log1p(count) for count in item.count_MH[0]]
    age_h = 0.0 if never else max(time_ms - int(item.last_ms_M[0]), 0) / HOUR
    values = [
        *counts,
        math.log1p(item.total_M[0]),
        counts[0] - counts[-1],
        math.log1p(4 * sum(tie)),
        math.log1p(4 * max(tie, default=0.0)),
        math.log1p(4 * sum(tie[:1])),
        math.log1p(100 * sum(share)),
        math.log1p(100 * max(share, default=0.0)),
        math.log1p(age_h),
        0.0 if birth < 0 else math.log1p(max(time_ms - birth, 0) / DAY),
        float(never),
        float(never and announced > 0),
        sum(cosine[:1]),
        max(cosine, default=0.0),
        float(row in history),
        math.log1p(len(history)),
        math.log1p(max(time_ms - last_ms, 0) / HOUR) if history else 0.0,
    ]
    return dict(zip(source.names, values, strict=True))


@pytest.mark.parametrize("history", [[], [3], [1, 2, 3, 4, 5, 6, 1]])
def test_features_equal_the_formula_of_each(history: list[int]) -> None:
    catalogue = make_catalogue()
    for row in (10, 11, 48):
        catalogue._announced_ms_N[row] = TIME_MS - row * DAY
    statistics = LiveStatistics(StatisticsConfig())
    source = FeatureSource(SharedRows(statistics, catalogue))
    random = np.random.default_rng(0)
    for n in range(300):
        action = IMPRESSION if n % 9 == 0 else CLICK
        number = random.integers(NUM_ITEMS - 8)  # the last items have no event
        time_ms = TIME_MS - int(random.integers(20 * DAY))
        statistics.update(f"u{random.integers(12)}", f"item-{number}", action, time_ms)
    row_M = random.permutation(NUM_ITEMS)[:40].astype(np.int64)
    row_M = np.unique(np.append(row_M, [10, 48]))
    feature_MF = source.features(row_M, np.asarray(history, dtype=np.int64), TIME_MS - 3 * HOUR, TIME_MS)
    assert feature_MF.dtype == np.float32
    assert source.names == feature_names(statistics.config)
    for m, row in enumerate(row_M.tolist()):
        expected = slowly(source, row, history, TIME_MS - 3 * HOUR, TIME_MS)
        assert dict(zip(source.names, feature_MF[m].tolist(), strict=True)) == pytest.approx(
            expected, rel=1e-5, abs=1e-6
        )
