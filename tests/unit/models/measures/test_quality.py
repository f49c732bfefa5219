"""Windows, segments, curve, baseline and gate, against plain arithmetic."""

import numpy as np
import pytest

from models.measures.gate import gate
from models.measures.quality import PairedHits, PrequentialQuality, ScoredEvent
from models.measures.windowed_popularity import WindowedPopularity


def scored(
    rank: int, baseline: int = -1, *, cold: bool = False, new: bool = False, repeat: bool = False
) -> ScoredEvent:
    return ScoredEvent(
        rank=rank,
        baseline_rank=baseline,
        is_cold_user=cold,
        is_new_item=new,
        is_repeat=repeat,
        prefix_hits_C=[True, rank >= 0],
    )


def test_segments_hold_the_means_of_the_last_window() -> None:
    quality = PrequentialQuality(window=4, num_codes=2)
    for event in (
        scored(0),
        scored(2, 0, cold=True),
        scored(10, 9),
        scored(-1, 10, new=True),
        scored(1, 3, repeat=True),
        scored(0, 0),
    ):
        quality.add(event)
    by_name = {segment.segment: segment for segment in quality.segments()}
    assert by_name["all"].num_events == 4  # the first one left the window, the repeat is apart
    assert by_name["all"].recall_at_10 == 2 / 4
    assert by_name["all"].ndcg_at_10 == pytest.approx((0.5 + 1.0) / 4)
    assert by_name["all"].popularity_recall_at_10 == 3 / 4
    assert by_name["cold_user"].num_events == 1
    assert by_name["warm_user"].num_events == 4
    assert (by_name["new_item"].num_events, by_name["new_item"].recall_at_10) == (1, 0.0)
    assert by_name["repeat"].recall_at_10 == 1.0
    assert quality.hierarchical_recall() == [1.0, 3 / 4]
    assert quality.figures()["recall@10"] == 0.5


def test_curve_stays_short_and_counts_every_event() -> None:
    quality = PrequentialQuality(window=10, num_codes=2)
    num_learned = 0
    for n in range(1_000):
        quality.add(scored(0 if n % 4 == 0 else -1, 0))
        num_learned += 256
        quality.mark(num_learned)
    curve = quality.curve()
    assert 100 <= len(curve) <= 200
    assert num_learned - 8 * 256 <= curve[-1].num_events <= num_learned
    assert np.mean([point.recall_at_10 for point in curve]) == pytest.approx(0.25, abs=0.01)
    assert all(point.popularity_recall_at_10 == 1.0 for point in curve)


def test_popularity_counts_the_newest_events_only() -> None:
    popularity = WindowedPopularity(window=4)
    for row in (7, 7, 7, 2, 3, 3, 2000):
        popularity.add(row)
    nobody = np.empty(0, dtype=np.int64)
    assert popularity.rank(3, nobody) == 0
    assert popularity.rank(2, nobody) == 1
    assert popularity.rank(2000, nobody) == 2
    assert popularity.rank(7, nobody) == -1
    assert popularity.rank(2000, np.array([3, 2, 99_999])) == 0
    popularity.add(2)
    popularity.add(2)
    assert [popularity.rank(row, nobody) for row in (2, 3, 2000)] == [0, 1, 2]


def test_pairs_are_the_newest_until_another_release_is_live() -> None:
    paired = PairedHits(window=3)
    for n in range(5):
        paired.add(learner_hit=n % 2 == 0, live_hit=True)
    learner, live = paired.columns()
    assert learner.tolist() == [1.0, 0.0, 1.0]
    assert live.tolist() == [1.0, 1.0, 1.0]
    paired.clear()
    assert len(paired.columns()[0]) == 0


def test_gate_is_a_paired_test_with_a_tolerance() -> None:
    live = np.zeros(1_000)
    live[:100] = 1.0
    better, worse, slightly = live.copy(), live.copy(), live.copy()
    better[100:130] = 1.0
    worse[:50] = 0.0
    slightly[:6] = 0.0
    verdict = gate(better, live, 0.0)
    assert verdict.passed
    assert verdict.difference == pytest.approx(0.03)
    assert verdict.standard_error == pytest.approx(0.0054, abs=1e-4)
    assert not gate(worse, live, 0.005).passed
    assert gate(worse, live, 0.06).passed
    assert gate(slightly, live, 0.005).passed
    assert gate(live, live, 0.0).passed
    few = gate(better[:50], live[:50], 0.0)
    assert not few.passed
    assert "only 50" in few.reason
    with pytest.raises(ValueError, match="no pairs"):
        gate(better, live[:10], 0.0)
