"""Both numberings of the same items, whichever side had an item first."""

import numpy as np

from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.ranking.shared_rows import SharedRows
from tests.factories import make_catalogue, make_content


def test_equal_looking_up_every_id_at_every_moment() -> None:
    catalogue, statistics = make_catalogue(5), LiveStatistics(StatisticsConfig())
    shared = SharedRows(statistics, catalogue)
    random = np.random.default_rng(0)
    content_NE = make_content(40, seed=1)
    for n in range(120):
        number = int(random.integers(40))
        if n % 3 == 0 and catalogue.row(f"item-{number}") is None:
            content_E = content_NE[number]
            catalogue.insert(f"item-{number}", catalogue.assign(content_E), content_E)
        else:
            statistics.update(f"u{n}", f"item-{number}", 2, 10**12 + n)
        if n % 5:
            continue
        own_N = shared.own(np.arange(len(catalogue)))
        row_S = shared.catalogue_rows(np.arange(len(statistics)))
        assert own_N.tolist() == statistics.rows(catalogue.item_ids).tolist()
        assert row_S.tolist() == catalogue.rows(statistics.item_ids()).tolist()
