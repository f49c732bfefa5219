"""What in `models` has a state: how each one is made, used at random, kept in a checkpoint and restored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.batch import ACTION_NAMES, NUM_ACTIONS
from models.measures.quality import PairedHits, PrequentialQuality, ScoredEvent
from models.measures.windowed_popularity import WindowedPopularity
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.config import LearnerConfig
from models.online.memory import Memory
from models.online.optimiser_steps import OnlineTrainer
from models.online.reservoir import Reservoir
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.sequences.dedupe import DedupeWindow
from models.sequences.growing_windows import training_batch, whole_window
from models.sequences.histories import Past, UserHistories
from tests.factories import MODEL, NUM_ITEMS, TIME_MS, make_catalogue

NUM_CODES = 3
STATISTICS = StatisticsConfig(num_recent_items=3, max_neighbours=4, max_users=30, max_counted=200)
LEARNER = LearnerConfig(
    dedupe_window=20,
    max_seen_events=4,
    reservoir_size=6,
    popularity_window=15,
    quality_window=25,
    gate_window=7,
    learning_rate=3e-3,
    anchor_strength=0.1,
)

Random = np.random.Generator
Answers = list[object]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What goes into a checkpoint, and what comes out of it."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing with a state: `use` changes it at random and lists what it answered."""

    make: Callable[[], Any]
    use: Callable[[Any, Random], Answers]
    restore: Callable[[Saved], Any]
    keep: Callable[[Any], Saved] = lambda one: Saved(tensors={"one": one.state()})


def random_past(random: Random, longest: int = 6) -> Past:
    """A few events in time order, at times that come again."""
    length = int(random.integers(1, longest))
    return Past(
        random.integers(NUM_ITEMS, size=length),
        random.integers(NUM_ACTIONS, size=length),
        np.sort(TIME_MS + 1_000 * random.integers(40, size=length)),
    )


def columns(past: Past) -> list[list[int]]:
    return [past.item_T.tolist(), past.action_T.tolist(), past.time_ms_T.tolist()]


def use_dedupe(window: DedupeWindow, random: Random) -> Answers:
    answers: Answers = []
    for _ in range(60):
        ids = [f"e{random.integers(2_500)}" for _ in range(random.integers(1, 40))]
        is_fresh_N = window.fresh(ids)
        window.add_many([one for one, is_fresh in zip(ids, is_fresh_N, strict=True) if is_fresh])
        answers += [is_fresh_N.tolist(), window.admit(f"e{random.integers(2_500)}"), len(window)]
    return answers


def use_histories(histories: UserHistories, random: Random) -> Answers:
    for _ in range(30):
        histories.add(int(random.integers(-4, 5)) << 60, random_past(random))
    return [len(histories), *(columns(histories.get(user << 60)) for user in range(-4, 5))]


def use_reservoir(reservoir: Reservoir, random: Random) -> Answers:
    for _ in range(15):
        reservoir.offer(random_past(random), random)
    drawn = [columns(past) for past in reservoir.draw(20, random)]
    return [len(reservoir), reservoir.num_offered, drawn]


def use_popularity(popularity: WindowedPopularity, random: Random) -> Answers:
    rows = [0, 1, 2, 3, 4, 5, 1_500, 4_000]
    for _ in range(12):
        popularity.add(int(random.choice(rows)))
    return [popularity.rank(row, np.asarray(random.choice(rows, 2))) for row in rows]


def use_quality(quality: PrequentialQuality, random: Random) -> Answers:
    for _ in range(40):
        rank, baseline_rank = (int(n) for n in random.integers(-1, 14, size=2))
        is_cold, is_new, is_repeat, has_beam = random.random(4) < 0.4
        quality.add(
            ScoredEvent(
                rank=rank,
                baseline_rank=baseline_rank,
                is_cold_user=bool(is_cold),
                is_new_item=bool(is_new),
                is_repeat=bool(is_repeat),
                prefix_hits_C=(random.random(NUM_CODES) < 0.5).tolist() if has_beam else [],
            )
        )
        # the stream goes on: each mark is further than all before
        end = quality.curve()[-1].num_events if quality.curve() else 0
        quality.mark(end + int(random.integers(600)))
    return [quality.segments(), quality.figures(), quality.hierarchical_recall(), quality.curve()]


def use_pairs(paired: PairedHits, random: Random) -> Answers:
    if random.random() < 0.2:
        paired.clear()
    for learner_hit, live_hit in random.random((5, 2)) < 0.5:
        paired.add(learner_hit=bool(learner_hit), live_hit=bool(live_hit))
    return [column.tolist() for column in paired.columns()]


def use_statistics(statistics: LiveStatistics, random: Random) -> Answers:
    """Some events come late, some are no wishes; more items than are kept as the hottest."""
    before, counted = statistics.trending(400), []
    for n in range(500):
        late_ms = int(random.integers(20 * 86_400_000)) if n % 7 == 0 else 0
        now_ms = max(statistics.newest_ms, TIME_MS) + int(random.integers(600_000))
        item = f"i{random.integers(700) if n % 2 else min(random.zipf(1.3), 40)}"
        action = int(random.integers(len(ACTION_NAMES)))
        counted.append(statistics.update(f"u{random.integers(60)}", item, action, now_ms - late_ms))
    rows = statistics.rows([f"i{n}" for n in range(700)])
    known = rows[rows >= 0][:20]
    found = statistics.items(rows, statistics.newest_ms + 1_000)
    answers: Answers = [before, counted, list(statistics.item_ids())]
    answers += [statistics.num_events, statistics.newest_ms, statistics.trending(9), statistics.trending(600)]
    answers += [statistics.cooccurring([f"i{n}" for n in random.integers(40, size=4)], 12) for _ in range(5)]
    answers += [column.tolist() for column in vars(found).values()]
    return answers + [one.tolist() for one in statistics.ties(known, known, statistics.newest_ms)]


def use_memory(memory: Memory, random: Random) -> Answers:
    memory.num_learned += 1
    memory.num_wishes += 2
    return [
        use_dedupe(memory.dedupe, random),
        use_histories(memory.histories, random),
        use_histories(memory.aversions, random),
        use_reservoir(memory.reservoir, memory.random),
        use_popularity(memory.popularity, random),
        use_quality(memory.quality, random),
        use_pairs(memory.paired, random),
        memory.random.integers(1 << 60, size=3).tolist(),
        memory.num_learned,
        memory.num_wishes,
    ]


def keep_memory(memory: Memory) -> Saved:
    tensors, values = memory.state()
    return Saved(tensors=tensors, meta=values)


CATALOGUE = make_catalogue()


def make_trainer() -> OnlineTrainer:
    torch.manual_seed(0)
    return OnlineTrainer(GenerativeRecommender(MODEL), Ranker(MODEL, 5), LEARNER, torch.float32)


def use_trainer(trainer: OnlineTrainer, random: Random) -> Answers:
    """Steps on random windows; now and then a loss that is not finite, or other weights to hold on to."""
    reports: Answers = []
    for n in range(3):
        windows = [whole_window(random_past(random)) for _ in range(4)]
        ranker_loss = sum((one * random.normal()).tanh().sum() for one in trainer.ranker.parameters())
        assert isinstance(ranker_loss, Tensor)
        is_odd = random.random() < 0.3
        batch = training_batch(windows, MODEL.max_history)
        report = trainer.step([batch], ranker_loss * (np.nan if is_odd else 1.0), CATALOGUE)
        reports.append([str(value) for value in vars(report).values()])
        if n == 0:
            trainer.anchor_to(trainer.recommender, trainer.ranker)
    return [*reports, trainer.num_steps]


def keep_trainer(trainer: OnlineTrainer) -> Saved:
    return Saved(tensors=trainer.state(), meta={"num_steps": trainer.num_steps})


def restore_trainer(saved: Saved) -> OnlineTrainer:
    """Into one of other weights."""
    torch.manual_seed(1)
    trainer = OnlineTrainer(GenerativeRecommender(MODEL), Ranker(MODEL, 5), LEARNER, torch.float32)
    trainer.load_state({name: dict(group) for name, group in saved.tensors.items()}, saved.meta["num_steps"])
    return trainer


def dedupe_row(size: int) -> Row:
    return Row(
        make=lambda: DedupeWindow(size),
        use=use_dedupe,
        restore=lambda saved: DedupeWindow.from_state(size, dict(saved.tensors["one"])),
    )


def reservoir_row(size: int) -> Row:
    return Row(
        make=lambda: Reservoir(size),
        use=use_reservoir,
        restore=lambda saved: Reservoir.from_state(size, dict(saved.tensors["one"])),
    )


def keep_statistics(statistics: LiveStatistics) -> Saved:
    tensors, table = statistics.state()
    return Saved(tensors={"one": tensors}, tables={"items": table})


ROWS = {
    "DedupeWindow of none": dedupe_row(0),
    "DedupeWindow": dedupe_row(8),
    "DedupeWindow that grows": dedupe_row(2_000),
    "Reservoir of none": reservoir_row(0),
    "Reservoir": reservoir_row(8),
    "UserHistories": Row(
        make=lambda: UserHistories(5),
        use=use_histories,
        restore=lambda saved: UserHistories.from_state(5, dict(saved.tensors["one"])),
    ),
    "WindowedPopularity": Row(
        make=lambda: WindowedPopularity(20),
        use=use_popularity,
        restore=lambda saved: WindowedPopularity.from_state(20, dict(saved.tensors["one"])),
    ),
    "PrequentialQuality": Row(
        make=lambda: PrequentialQuality(30, NUM_CODES),
        use=use_quality,
        restore=lambda saved: PrequentialQuality.from_state(30, NUM_CODES, dict(saved.tensors["one"])),
    ),
    "PairedHits": Row(
        make=lambda: PairedHits(7),
        use=use_pairs,
        restore=lambda saved: PairedHits.from_state(7, dict(saved.tensors["one"])),
    ),
    "LiveStatistics": Row(
        make=lambda: LiveStatistics(STATISTICS),
        use=use_statistics,
        keep=keep_statistics,
        restore=lambda saved: LiveStatistics.from_state(
            STATISTICS, dict(saved.tensors["one"]), saved.tables["items"]
        ),
    ),
    "Memory": Row(
        make=lambda: Memory.blank(LEARNER, NUM_CODES),
        use=use_memory,
        keep=keep_memory,
        restore=lambda saved: Memory.from_state(
            LEARNER,
            NUM_CODES,
            {name: dict(group) for name, group in saved.tensors.items()},
            dict(saved.meta),
        ),
    ),
    "OnlineTrainer": Row(make=make_trainer, use=use_trainer, keep=keep_trainer, restore=restore_trainer),
}
