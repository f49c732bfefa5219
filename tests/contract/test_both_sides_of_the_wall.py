"""Rules that stand in `streaming` and in `models`, which do not know each other: both say the same.

What may name a release, what an event means, when a user's wish for an item counts, how counts fade, and
which items are ahead.
"""

from pathlib import Path

import numpy as np
import pytest

from models.artifacts.release import save_release
from models.batch import ACTION_NAMES
from models.candidates import Source
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.recommend_pb2 import CandidateSource
from protos.headrace.v1.trends_pb2 import Trend
from services.wire.translate import event_batch
from streaming.messages.events import release_id_problem
from streaming.messages.meaning import EventMeaning, Meaning
from streaming.trends import counting
from tests.factories import make_release

BEGIN_MS, DAY_MS = 1_700_000_000_000, 86_400_000
VALUES = (0.0, 0.5, 1.0, 2.9, 3.0, 5.0)


def stream(num_events: int, seed: int) -> list[Event]:
    """Events of 30 users on 40 items over 40 days, by time with some late ones; one user is a bot."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 40 * DAY_MS, num_events)) - random.choice([0, 2 * DAY_MS], num_events)
    return [
        Event(
            event_id=str(n),
            user_id="bot" if n % 7 == 0 else f"u{random.integers(30)}",
            item_id="item-39" if n % 7 == 0 else f"item-{int(40 * random.random() ** 2)}",
            action=int(random.choice([value for value in Action.values() if value])),
            value=float(random.choice(VALUES)),
            event_time_ms=BEGIN_MS + 2 * DAY_MS + int(time_ms),
        )
        for n, time_ms in enumerate(times)
    ]


def test_the_actions_have_the_same_numbers() -> None:
    assert [name.removeprefix("ACTION_").lower() for name in Action.keys()] == list(ACTION_NAMES)  # noqa: SIM118
    assert Action.values() == list(range(len(ACTION_NAMES)))


def test_the_sources_have_the_same_numbers() -> None:
    said = {name.removeprefix("CANDIDATE_SOURCE_"): number for name, number in CandidateSource.items()}
    assert said.pop("UNSPECIFIED") == 0
    assert said == {source.name: int(source) for source in Source}


@pytest.mark.parametrize(
    "release_id", ["r", "20260101-120000-abc_1.2", "x" * 128, "x" * 129, "", "..", "a/b", "é"]
)
def test_a_release_is_saved_under_no_other_id_than_can_be_announced(release_id: str, tmp_path: Path) -> None:
    if release_id_problem(release_id) is None:
        save_release(tmp_path, make_release(release_id))
    else:
        with pytest.raises(ValueError, match="cannot name a release"):
            save_release(tmp_path, make_release(release_id))
    assert {path.name for path in tmp_path.iterdir()} <= {release_id}


@pytest.mark.parametrize("liked_rating", [1.0, 3.0, 4.5])
def test_an_event_means_the_same(liked_rating: float) -> None:
    meaning = EventMeaning(liked_rating=liked_rating)
    events = [Event(action=action, value=value) for action in Action.values() for value in VALUES]
    batch = event_batch(events, np.zeros(len(events), np.int64), meaning)
    said = [meaning.of(event.action, event.value) for event in events]
    known = np.array([event.action != Action.ACTION_UNSPECIFIED for event in events])
    assert (batch.is_wish_N == [one is Meaning.WISH for one in said])[known].all()
    assert (batch.is_aversion_N == [one is Meaning.AVERSION for one in said])[known].all()


@pytest.mark.parametrize("seed", range(3))
def test_what_counts_and_who_is_ahead(seed: int) -> None:
    meaning, config = EventMeaning(), StatisticsConfig()
    assert config.half_lives_s[config.trending_half_life] * 1_000 == counting.HALF_LIFE_MS
    assert config.count_window_s * 1_000 == counting.COUNT_WINDOW_MS
    events = stream(3_000, seed)
    statistics, view = LiveStatistics(config), counting.TrendsView()
    batch = event_batch(events, np.zeros(len(events), np.int64), meaning)
    statistics.update_many(
        batch.user_ids, [event.item_id for event in events], batch.action_N.tolist(), batch.time_ms_N.tolist()
    )
    counter, kept = counting.TrendCounter(meaning, {}), dict[str, Trend]()
    for offset, event in enumerate(events):
        for trend in counter.count_many([(0, offset, event)], kept.get).values():
            kept[trend.item_id] = trend
            view.apply(trend)
    items = [trend.item_id for trend in view.top(100)]
    assert sorted(items) == sorted(statistics.item_ids())
    totals = [trend.num_events_total for trend in view.top(100)]
    assert totals == statistics.totals(statistics.rows(items)).tolist()
    assert sum(totals) < len(events) / 2  # the bot's and the repeated ones are out on both sides
    assert statistics.trending(20) == items[:20]
