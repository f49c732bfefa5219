"""The same variants on a stream, day by day, each event scored before it is learned.

The generator is trained on the events before a day at 70% of the stream. From then on an `OnlineLearner`
takes each day as one micro-batch. It is asked at dawn, with the weights of the evening before, about at most
`MAX_ASKED` events of the day, on items that the user did not have. Sources and features are those right
before each event; every variant's ranker scores them, and only then learns them. In the warm-up days the
variants' rankers are fitted to the same examples instead (as `headrace train` does); these are not scored.

An item is announced, and can be recommended, on the day of its first event (as in `headrace replay`): what is
said of new items rests on that.

Shapes: S asked events, M candidates.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from quality_data import Problem
from ranker_examples import DAY_MS, announced_at_first_event
from ranker_statistics import Budget, Row, Tick, Variant, make_pipeline, seen_by
from torch.nn.utils import clip_grad_norm_

from models.batch import EventBatch
from models.candidates import Candidates
from models.decoding.generation import Generation, generate
from models.measures.quality import COLD_USER_EVENTS, NEW_ITEM_EVENTS
from models.measures.ranking_metrics import Ranks, ranking_metrics
from models.networks.ranker import Ranker, ranking_loss
from models.online.config import LearnerConfig
from models.online.learner import OnlineLearner
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline, with_live
from models.ranking.scorer import Scorer
from models.sequences.histories import Past, pad_pasts
from models.sequences.stories import tell
from models.training.config import TrainConfig
from models.training.offline import train_recommender
from models.training.ranker_examples import Example, example_batch
from models.training.ranker_fitting import AveragedTraining

MAX_ASKED = 96
STEP_EXAMPLES = 32
START_SHARE = 0.7
WARM_UP_ROUNDS = 3
NUM_ANSWERS = 10
SOURCES_ALONE = ("popularity", "co-occurrence neighbours", "dense head", "beam search")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One event of a day: the request (None: nobody proposed its item), and its rank by source."""

    example: Example | None
    rank_of: dict[str, int]
    is_new_item: bool
    is_new_user: bool


class Stream:
    """A learner that goes through the days, and what it is asked."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        events = problem.events
        self.events = events.select(np.argsort(events.time_ms_N, kind="stable"))
        self.day_N = self.events.time_ms_N // DAY_MS
        self.first_day = int(self.day_N[int(START_SHARE * len(events))])
        self.days = np.unique(self.day_N[self.day_N >= self.first_day]).tolist()
        self.catalogue, self.first_day_N = announced_at_first_event(
            problem.catalogue, self.events, self.first_day
        )
        past = self.events.select(self.day_N < self.first_day)
        config = TrainConfig(max_epochs=budget.generator_epochs, align_epochs=0)
        nothing = past.select(np.arange(0))
        recommender = train_recommender(problem.catalogue, past, problem.model, config, validation=nothing)
        built = make_pipeline(self.catalogue, recommender)
        self.learner = OnlineLearner(
            recommender,
            built.ranker,
            self.catalogue,
            LiveStatistics(built.scorer.statistics.config),
            LearnerConfig(score_every=1_000_000),  # what is asked is asked here, with every variant
            built.search,
        )
        self.learner.observe_many(past)
        # Follows the stream event by event while the learner's own stands at the evening before.
        self.statistics = LiveStatistics.from_state(
            self.learner.statistics.config, *self.learner.statistics.state()
        )

    @property
    def pipeline(self) -> Pipeline:
        """The learner's present weights with statistics that follow event by event."""
        ours = self.learner.pipeline
        return replace(ours, scorer=Scorer(ours.engine, self.statistics))

    def ask(self, day: int) -> tuple[EventBatch, list[Asked]]:
        """The day's events, and what is asked of them; the statistics stand at its end afterwards."""
        for row in np.nonzero(self.first_day_N == day)[0].tolist():
            self.catalogue.set_available(row, True)
        events = self.events.select(self.day_N == day)
        _, pasts = tell(events, self.learner.memory.histories)
        unseen = [n for n in range(len(events)) if events.item_N[n] not in pasts[n].item_T]
        chosen = np.unique(np.linspace(0, len(unseen) - 1, min(MAX_ASKED, len(unseen))).astype(int))
        place_of = {unseen[c]: s for s, c in enumerate(chosen.tolist())}
        pipeline, asked, questions = self.pipeline, [], [pasts[n] for n in place_of]
        generation = self._generate(pipeline, questions) if questions else None
        for n in range(len(events)):
            if n in place_of and generation is not None:
                asked.append(self._ask_one(pipeline, events, n, pasts[n], place_of[n], generation))
            item_id = self.catalogue.item_ids[events.item_N[n]]
            self.statistics.update(
                events.user_ids[n], item_id, int(events.action_N[n]), int(events.time_ms_N[n])
            )
        return events, asked

    def _generate(self, pipeline: Pipeline, questions: list[Past]) -> Generation:
        return generate(
            pipeline.engine,
            pad_pasts(questions, pipeline.engine.config.max_history),
            k=pipeline.search.num_dense,
            beam=pipeline.search.beam,
            exclude=[np.unique(past.item_T) for past in questions],
        )

    def _ask_one(
        self, pipeline: Pipeline, events: EventBatch, n: int, past: Past, s: int, generation: Generation
    ) -> Asked:
        row, time_ms = int(events.item_N[n]), int(events.time_ms_N[n])
        exclude = np.unique(past.item_T)
        history = pad_pasts([past], pipeline.engine.config.max_history)
        found = with_live(pipeline.scorer, generation.candidates[s], history, 0, time_ms, exclude)
        place = np.nonzero(found.row_M == row)[0]
        example = None
        if len(place):
            example = Example(
                history=history,
                candidates=found,
                features_MF=pipeline.scorer.features(history, 0, found.row_M, time_ms),
                state_1D=generation.state_BD[s : s + 1],
                target=int(place[0]),
                action_1A=torch.zeros(1, 8),
            )
        own = self.statistics.rows([self.catalogue.item_ids[row]])
        return Asked(
            example=example,
            rank_of=self._alone(generation.candidates[s], past, exclude, row),
            is_new_item=bool(self.statistics.totals(own)[0] < NEW_ITEM_EVENTS),
            is_new_user=len(past) < COLD_USER_EVENTS,
        )

    def _alone(self, found: Candidates, past: Past, exclude: np.ndarray, row: int) -> dict[str, int]:
        """Where each source alone has the item, -1 for not among the first `NUM_ANSWERS`."""
        catalogue = self.catalogue
        recent = [catalogue.item_ids[other] for other in past.item_T]
        popular = catalogue.rows(self.statistics.trending(NUM_ANSWERS + len(exclude)))
        neighbours = catalogue.rows(self.statistics.cooccurring(recent, 4 * NUM_ANSWERS))
        by_dense, by_beam = (
            found.row_M[np.argsort(np.nan_to_num(-score_M, nan=np.inf), kind="stable")]
            for score_M in (found.dense_M, found.beam_M)
        )
        lists = (popular[~np.isin(popular, exclude)], neighbours[~np.isin(neighbours, exclude)])
        ranks = {}
        for name, listed in zip(SOURCES_ALONE, (*lists, by_dense, by_beam), strict=True):
            place = np.nonzero(listed[:NUM_ANSWERS] == row)[0]
            ranks[name] = int(place[0]) if len(place) else -1
        return ranks


class OnlineVariant:
    """A variant's ranker: fitted in the warm-up, then scored and trained day by day."""

    def __init__(self, variant: Variant, blank: Ranker) -> None:
        self.variant = variant
        self.ranker = copy.deepcopy(blank)
        self.warm_up: list[Example] = []
        self.optimiser: torch.optim.AdamW | None = None

    def see(self, asked: list[Asked], names: tuple[str, ...]) -> list[Example | None]:
        """The requests with its features and sources."""
        return [None if one.example is None else seen_by(self.variant, one.example, names) for one in asked]

    def fit(self, pipeline: Pipeline, config: LearnerConfig) -> None:
        """Ends the warm-up."""
        if self.warm_up:
            torch.manual_seed(0)
            training = AveragedTraining(pipeline, self.ranker, self.warm_up, np.random.default_rng(0))
            for _ in range(WARM_UP_ROUNDS):
                training.one_round()
            self.ranker = training.average
        self.optimiser = torch.optim.AdamW(
            self.ranker.parameters(), lr=config.ranker_learning_rate, weight_decay=0.0
        )

    @torch.no_grad()
    def ranks(self, pipeline: Pipeline, seen: list[Example | None]) -> list[int]:
        """The rank of each item, -1 where it was not proposed."""
        ranks = [-1] * len(seen)
        places = [s for s, example in enumerate(seen) if example is not None]
        for begin in range(0, len(places), 2 * STEP_EXAMPLES):
            part = places[begin : begin + 2 * STEP_EXAMPLES]
            batch, targets = example_batch(pipeline, [one for s in part if (one := seen[s]) is not None])
            relevance_BM = self.ranker(batch, pipeline.engine.item_ND).relevance_BM
            better_B = (relevance_BM > relevance_BM.gather(1, targets.target_B[:, None])).sum(1)
            for s, rank in zip(part, better_B.tolist(), strict=True):
                ranks[s] = rank
        return ranks

    def learn(self, pipeline: Pipeline, seen: list[Example | None], config: LearnerConfig) -> None:
        """One step for every `STEP_EXAMPLES` asked events."""
        assert self.optimiser is not None
        for begin in range(0, len(seen), STEP_EXAMPLES):
            known = [one for one in seen[begin : begin + STEP_EXAMPLES] if one is not None]
            if not known:
                continue
            batch, targets = example_batch(pipeline, known)
            loss = ranking_loss(self.ranker(batch, pipeline.engine.item_ND), targets)
            self.optimiser.zero_grad()
            loss.backward()
            clip_grad_norm_(self.ranker.parameters(), config.max_grad_norm)
            self.optimiser.step()


def stream_rows(problem: Problem, budget: Budget, tick: Tick) -> tuple[list[Row], list[Row]]:
    """One row for each source alone and each variant; and Recall@10 of each on each day."""
    stream = Stream(problem, budget)
    names, config = stream.pipeline.scorer.feature_names, stream.learner.config
    variants = [OnlineVariant(one, stream.learner.ranker) for one in budget.stream_variants]
    rank_of: dict[str, list[int]] = {
        name: [] for name in (*SOURCES_ALONE, *(v.variant.name for v in variants))
    }
    about: list[Asked] = []
    days: list[Row] = []
    for number, day in enumerate(stream.days[: budget.warm_up_days + budget.num_days]):
        tick("stream days", number, budget.warm_up_days + budget.num_days)
        is_warm_up = number < budget.warm_up_days
        events, asked = stream.ask(day)
        pipeline = stream.pipeline
        if number == budget.warm_up_days:
            for variant in variants:
                variant.fit(pipeline, config)
        begin = len(about)
        if not is_warm_up:
            about += asked
            for name in SOURCES_ALONE:
                rank_of[name] += [one.rank_of[name] for one in asked]
        for variant in variants:
            seen = variant.see(asked, names)
            if is_warm_up:
                variant.warm_up += [one for one in seen if one is not None]
                continue
            rank_of[variant.variant.name] += variant.ranks(pipeline, seen)
            variant.learn(pipeline, seen, config)
        if not is_warm_up and asked:
            for name, ranks in rank_of.items():
                recall = ranking_metrics(np.asarray(ranks[begin:]))["recall@10"]
                days.append({"system": name, "day": number, "events": len(asked), "recall@10": recall})
        stream.learner.learn_many(events)
    rows = [_row(name, np.asarray(ranks, dtype=np.int64), about) for name, ranks in rank_of.items()]
    return rows, days


def _row(name: str, rank_S: Ranks, about: list[Asked]) -> Row:
    new_item_S = np.asarray([one.is_new_item for one in about], dtype=bool)
    new_user_S = np.asarray([one.is_new_user for one in about], dtype=bool)
    parts = {
        "new_items": new_item_S,
        "old_items": ~new_item_S,
        "new_users": new_user_S,
        "old_users": ~new_user_S,
        "old_users_old_items": ~new_user_S & ~new_item_S,
    }
    whole = ranking_metrics(rank_S)
    row: Row = {
        "part": "stream",
        "variant": name,
        "recall@10": whole["recall@10"],
        "ndcg@10": whole["ndcg@10"],
        "num_events": len(rank_S),
    }
    for part, mask_S in parts.items():
        row[f"recall@10_{part}"] = ranking_metrics(rank_S[mask_S])["recall@10"]
        row[f"num_{part}"] = int(mask_S.sum())
    return row
