"""The union of sources, and what each live source may propose."""

import numpy as np
import pytest
import torch

from models.candidates import Candidates, Source, proposed_by, unite
from models.catalogue.index import CatalogueIndex
from models.ranking.config import StatisticsConfig
from models.ranking.live_sources import LIVE_SOURCES, LiveSources
from models.ranking.live_statistics import LiveStatistics
from models.ranking.shared_rows import SharedRows
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

NOW = 10**12
DAY = 86_400_000


@pytest.fixture
def catalogue() -> CatalogueIndex:
    content = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    codebook = fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=4))
    index = CatalogueIndex(codebook)
    announced = np.zeros(30, dtype=np.int64)
    announced[20:] = NOW - DAY
    announced[29] = NOW + DAY
    index.add_many([f"i{n}" for n in range(30)], content, announced)
    return index


@pytest.fixture
def statistics() -> LiveStatistics:
    statistics = LiveStatistics(StatisticsConfig())
    for n in range(12):
        statistics.update(f"u{n % 3}", f"i{n}", 2, NOW - DAY + n)
    for n in range(6):
        statistics.update(f"v{n}", "i20", 2, NOW)
    statistics.update("w", "gone", 2, NOW)
    return statistics


def scored(row: list[int], beam: list[float], dense: list[float], source: Source) -> Candidates:
    return Candidates(
        row_M=np.array(row),
        source_M=np.full(len(row), source.bit),
        beam_M=np.array(beam, dtype=np.float32),
        dense_M=np.array(dense, dtype=np.float32),
    )


def test_union_keeps_each_row_once_with_all_sources_and_scores() -> None:
    nan = float("nan")
    united = unite(
        [
            scored([7, 3], [-1.0, -2.0], [nan, nan], Source.BEAM),
            scored([5, 7], [nan, nan], [4.0, 3.0], Source.DENSE),
            proposed_by(Source.NEW, np.array([3, 9])),
        ]
    )
    assert united.row_M.tolist() == [7, 3, 5, 9]
    assert united.source_M[:2].tolist() == [
        Source.BEAM.bit | Source.DENSE.bit,
        Source.BEAM.bit | Source.NEW.bit,
    ]
    np.testing.assert_array_equal(united.beam_M, np.array([-1, -2, nan, nan], dtype=np.float32))
    np.testing.assert_array_equal(united.dense_M, np.array([3, nan, 4, nan], dtype=np.float32))


def test_live_sources_exclude_and_can_be_switched_off(
    catalogue: CatalogueIndex, statistics: LiveStatistics
) -> None:
    catalogue.set_available(4, False)
    nothing = proposed_by(Source.BEAM, np.empty(0, dtype=np.int64))
    recent = np.array([0, 3])
    sources = LiveSources(SharedRows(statistics, catalogue))
    everything = sources.add(nothing, recent, NOW, exclude=recent)
    rows = set(everything.row_M.tolist())
    assert len(rows) == len(everything)
    assert not rows & {0, 3, 4}
    mask_of = dict(zip(everything.row_M.tolist(), everything.source_M.tolist(), strict=True))
    assert mask_of[6] & Source.COOCCURRENCE.bit
    assert mask_of[20] & Source.TRENDING.bit
    assert mask_of[25] == Source.NEW.bit
    assert 29 not in rows  # announced later than now
    for source in LIVE_SOURCES:
        fewer = sources.add(nothing, recent, NOW, disabled={source}, exclude=recent)
        assert not (fewer.source_M & source.bit).any()
        assert len(fewer) <= len(everything)


def test_an_item_with_events_is_no_longer_new(catalogue: CatalogueIndex, statistics: LiveStatistics) -> None:
    assert set(LiveSources(SharedRows(statistics, catalogue)).newly_announced(NOW).tolist()) == set(
        range(21, 29)
    )


def test_what_is_not_streamed_does_not_age(catalogue: CatalogueIndex, statistics: LiveStatistics) -> None:
    known = LiveSources(SharedRows(statistics, catalogue)).newly_announced(NOW + 40 * DAY).tolist()
    assert known[0] == 29  # by now it was announced, as the last
    assert set(known) >= set(range(22, 30))
    assert LiveSources(SharedRows(statistics, catalogue)).newly_announced(NOW + 400 * DAY).tolist() == known
