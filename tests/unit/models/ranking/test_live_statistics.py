"""Live statistics against slow, obvious formulas; the same numbers for every consumer of a stream."""

from collections import Counter

import numpy as np
import pytest
import torch

from models.batch import ACTION_NAMES, IMPRESSION, PASSIVE_ACTIONS, SKIP
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.sequences.dedupe import hash_id

CLICK = ACTION_NAMES.index("click")
DAY = 86_400_000


def make_stream(num_events: int, seed: int = 0) -> list[tuple[str, str, int, int]]:
    random = np.random.default_rng(seed)
    times = 10**12 + np.sort(random.integers(0, 60 * DAY, num_events))
    times[::7] -= DAY  # some come late
    return [
        (
            f"u{random.integers(20)}",
            f"i{min(random.zipf(1.3), 60)}",
            SKIP if n % 11 == 0 else CLICK,
            int(time),
        )
        for n, time in enumerate(times)
    ]


def consumed(
    stream: list[tuple[str, str, int, int]], config: StatisticsConfig | None = None
) -> LiveStatistics:
    statistics = LiveStatistics(config or StatisticsConfig())
    for event in stream:
        statistics.update(*event)
    return statistics


def counting(stream: list[tuple[str, str, int, int]]) -> list[tuple[str, str, int, int]]:
    """The clicks, each user's on an item once a day and on three days: slow and obvious."""
    kept, seen, days = [], set(), Counter[tuple[str, str]]()
    for user, item, action, time in stream:
        if action == CLICK and (user, item, time // DAY) not in seen:
            seen.add((user, item, time // DAY))
            days[user, item] += 1
            if days[user, item] <= 3:
                kept.append((user, item, action, time))
    return kept


def test_who_spreads_his_wishes_over_a_year_counts_on_three_days() -> None:
    statistics = LiveStatistics(StatisticsConfig())
    for day in range(365):
        statistics.update("bot", "a", CLICK, day * DAY)
    for n in range(4):
        statistics.update(f"u{n}", "b", CLICK, 364 * DAY)
    assert statistics.items(statistics.rows(["a", "b"]), 365 * DAY).total_M.tolist() == [3.0, 4.0]
    assert statistics.trending(1) == ["b"]


def test_counts_equal_the_sum_over_all_wishes() -> None:
    stream = make_stream(600)
    statistics = consumed(stream)
    now = max(time for *_, time in stream) + 3 * DAY
    ids = [f"i{n}" for n in range(1, 61)]
    items = statistics.items(statistics.rows(ids), now)
    for m, item_id in enumerate(ids):
        wished = [time for _, item, _, time in counting(stream) if item == item_id]
        for h, half_life_s in enumerate(statistics.config.half_lives_s):
            expected = sum(0.5 ** ((now - time) / 1000 / half_life_s) for time in wished)
            assert items.count_MH[m, h] == pytest.approx(expected, rel=1e-9)
        assert items.total_M[m] == len(wished)
        assert items.first_ms_M[m] == min(wished, default=-1)
        assert items.last_ms_M[m] == max(wished, default=-1)


def test_ties_equal_the_obvious_sum() -> None:
    config = StatisticsConfig(num_recent_items=3, max_neighbours=64, count_window_s=0.001)
    stream = sorted(make_stream(500, seed=1), key=lambda event: event[3])
    statistics = consumed(stream, config)
    now = max(time for *_, time in stream)
    expected: dict[tuple[str, str], float] = {}
    recent: dict[str, list[str]] = {}
    times = Counter[tuple[str, str]]()
    for user, item, action, time in stream:
        if action == SKIP:
            continue
        times[user, item] += 1
        others = [other for other in recent.get(user, []) if other != item]
        decay = 0.5 ** ((now - time) / 1000 / config.cooccurrence_half_life_s)
        for age, other in enumerate(reversed(others) if times[user, item] <= 3 else ()):
            gain = config.recency_decay**age * decay
            expected[other, item] = expected.get((other, item), 0.0) + gain
            expected[item, other] = expected.get((item, other), 0.0) + gain * config.backward_weight
        recent[user] = [*others, item][-3:]
    ids = list(statistics.item_ids())
    rows = statistics.rows(ids)
    weight_RM, share_RM = statistics.ties(rows, rows, now)
    for r, left in enumerate(ids):
        for m, right in enumerate(ids):
            assert weight_RM[r, m] == pytest.approx(expected.get((left, right), 0.0), rel=1e-6, abs=1e-12)
    assert np.allclose(share_RM.sum(1)[weight_RM.sum(1) > 0], 1.0)


def test_full_row_drops_its_weakest_tie() -> None:
    statistics = LiveStatistics(StatisticsConfig(num_recent_items=1, max_neighbours=2))
    for n, item in enumerate(["b", "b", "c", "d"]):
        statistics.update(f"u{n}", "a", CLICK, 1000)
        statistics.update(f"u{n}", item, CLICK, 1000)
    assert statistics.cooccurring(["a"], 5) == ["b", "d"]


def test_cooccurring_equals_the_obvious_sum_of_shares() -> None:
    config = StatisticsConfig(num_recent_items=4, max_neighbours=8)
    statistics = consumed(make_stream(800, seed=3), config)
    ids = list(statistics.item_ids())
    weight_RM, _ = statistics.ties(statistics.rows(ids), statistics.rows(ids), statistics.newest_ms)
    random = np.random.default_rng(0)
    for _ in range(40):
        recent = [*random.choice(ids, random.integers(1, 7)).tolist(), "unheard-of"]
        score_of: dict[str, float] = {}
        for age, item_id in enumerate(recent[::-1][:4]):
            if item_id in ids:
                tie_M = weight_RM[ids.index(item_id)]
                for m in np.nonzero(tie_M)[0]:
                    share = config.recency_decay**age * tie_M[m] / tie_M.sum()
                    score_of[ids[m]] = score_of.get(ids[m], 0.0) + share
        found = statistics.cooccurring(recent, 12)
        assert len(found) == len(set(found)) == min(12, len(score_of))
        scores = [score_of[item_id] for item_id in found]
        assert scores == pytest.approx(sorted(score_of.values(), reverse=True)[:12])


@pytest.mark.parametrize("seed", range(5))
def test_late_wishes_tie_as_if_they_had_come_in_time(seed: int) -> None:
    """Three wishes of a user in any order: what comes last was not known when the first two were tied."""
    times = {"a": 1_000, "b": 2_000, "c": 3_000}
    order = np.random.default_rng(seed).permutation(list(times)).tolist()
    late, in_time = LiveStatistics(StatisticsConfig()), LiveStatistics(StatisticsConfig())
    for item in order:
        late.update("u", item, CLICK, times[item])
    for item in times:
        in_time.update("u", item, CLICK, times[item])
    for left, right in (("a", "b"), ("b", "c")):
        ours, _ = late.ties(late.rows([left]), late.rows([right]), 3_000)
        theirs, _ = in_time.ties(in_time.rows([left]), in_time.rows([right]), 3_000)
        assert ours[0, 0] == pytest.approx(theirs[0, 0], rel=1e-6)
    assert late.state()[0]["recent"][0, :3, 0].tolist() == [1_000, 2_000, 3_000]


def test_one_user_counts_once_a_day() -> None:
    statistics = LiveStatistics(StatisticsConfig())
    for second in range(400):
        assert statistics.update("bot", "pushed", CLICK, 10**12 + 1_000 * second) == (second == 0)
        statistics.update("bot", "partner", CLICK, 10**12 + 1_000 * second + 500)
    for n in range(3):
        statistics.update(f"u{n}", "liked", CLICK, 10**12)
    assert statistics.trending(3)[0] == "liked"
    assert statistics.totals(statistics.rows(["pushed", "liked"])).tolist() == [1, 3]
    tie, _ = statistics.ties(statistics.rows(["pushed"]), statistics.rows(["partner"]), 10**12)
    assert tie[0, 0] <= 1.0
    assert statistics.update("bot", "pushed", CLICK, 10**12 + 2 * DAY)


def test_what_is_no_wish_moves_nothing() -> None:
    statistics, untouched = LiveStatistics(StatisticsConfig()), LiveStatistics(StatisticsConfig())
    for one in (statistics, untouched):
        one.update("u", "a", CLICK, 10**12)
    for n in range(80):
        statistics.update(f"v{n}", "a", SKIP, 10**12 + n)
        statistics.update("u", "b", IMPRESSION, 10**12 + n)
    ours, theirs = statistics.state(), untouched.state()
    assert ours[1].equals(theirs[1])
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0] if name != "progress")


@pytest.mark.parametrize("action", sorted(PASSIVE_ACTIONS))
def test_what_was_shown_only_looks_neither_used_nor_fresh(action: int) -> None:
    """Not to the ranker's statistics and not to the sources; what it had before, it keeps."""
    statistics = LiveStatistics(StatisticsConfig())
    statistics.update("u", "old", CLICK, 10**12)
    for n in range(300):
        for item in ("old", "shown"):
            statistics.update(f"v{n}", item, action, 10**12 + DAY + n)
    found = statistics.items(statistics.rows(["old", "shown"]), 10**12)
    assert found.total_M.tolist() == [1, 0]
    assert found.first_ms_M.tolist() == found.last_ms_M.tolist() == [10**12, -1]
    assert found.count_MH[0].tolist() == [1.0] * len(statistics.config.half_lives_s)
    assert not found.count_MH[1].any()
    assert list(statistics.item_ids()) == statistics.trending(5) == ["old"]
    assert statistics.cooccurring(["old"], 5) == []
    # the stream's own clock and count are of all events
    assert (statistics.num_events, statistics.newest_ms) == (601, 10**12 + DAY + 299)


def test_trending_equals_sorting_all_items() -> None:
    stream = make_stream(900, seed=4)
    statistics = LiveStatistics(StatisticsConfig())
    trend_s = statistics.config.half_lives_s[statistics.config.trending_half_life]
    for n, event in enumerate(stream):
        statistics.update(*event)
        if n % 50:
            continue
        heat_of: dict[str, float] = {}
        for _, item, _, time in counting(stream[: n + 1]):
            heat_of[item] = heat_of.get(item, 0.0) + 2.0 ** ((time - 10**12) / 1000 / trend_s)
        found = statistics.trending(9)
        expected = sorted(heat_of.values(), reverse=True)[:9]
        assert [heat_of[item_id] for item_id in found] == pytest.approx(expected)
        assert statistics.totals(statistics.rows([*found, "unheard-of"]))[-1] == 0


def test_trending_and_cooccurring_know_only_events() -> None:
    statistics = LiveStatistics(StatisticsConfig())
    assert statistics.trending(5) == []
    assert statistics.cooccurring(["x"], 5) == []
    statistics.update("u", "old", CLICK, 10**12)
    statistics.update("u", "old", CLICK, 10**12)
    statistics.update("v", "young", CLICK, 10**12 + 30 * DAY)
    statistics.update("w", "skipped", SKIP, 10**12 + 30 * DAY)
    assert statistics.trending(5) == ["young", "old"]


def test_state_of_other_settings_is_refused() -> None:
    state = consumed(make_stream(10)).state()
    with pytest.raises(ValueError, match="other settings"):
        LiveStatistics.from_state(StatisticsConfig(max_neighbours=8), *state)


def test_users_are_kept_as_hashes_and_bounded() -> None:
    statistics = consumed(make_stream(300), StatisticsConfig(max_users=5))
    tensors, table = statistics.state()
    assert tensors["user"].dtype == torch.int64
    assert len(tensors["user"]) == 5
    assert table.column_names == ["item_id"]
    assert hash_id("u1") == hash_id("u1") != hash_id("u2")
