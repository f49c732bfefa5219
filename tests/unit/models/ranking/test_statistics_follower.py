import numpy as np
import torch
from torch.nn import functional

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.ranking.statistics_follower import StatisticsFollower
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook


def test_statistics_hold_exactly_what_was_strictly_before():
    content = functional.normalize(torch.eye(3))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=4)))
    catalogue.add_many(["a", "b", "c"], content, np.zeros(3, dtype=np.int64))
    stream = EventBatch(
        event_ids=["1", "2", "3"],
        user_ids=["u", "u", "v"],
        item_N=np.array([0, 1, 2]),
        action_N=np.array([2, 2, 2]),
        time_ms_N=np.array([10, 20, 20]),
        value_N=np.zeros(3),
    )
    statistics = LiveStatistics(StatisticsConfig())
    follower = StatisticsFollower(statistics, catalogue, stream)
    seen = []
    for time_ms in (10, 11, 20, 5, 21, 99):
        follower.reach(time_ms)
        seen.append(list(statistics.item_ids()))
    assert seen == [[], ["a"], ["a"], ["a"], ["a", "b", "c"], ["a", "b", "c"]]
    assert statistics.num_events == 3
    assert statistics.cooccurring(["a"], 5) == ["b"]
