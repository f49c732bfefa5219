"""The predicted events of one micro-batch: asked, completed event by event, ranked, and written down.

Both models answer the same questions at the same stream positions: the learner's weights all of them,
the live release's every `live_every`-th, so that the two can be compared in pairs. What a forecast is
belongs to `models.online.forecasts`, what the figures mean to `models.measures.quality`.
"""

from dataclasses import dataclass

from torch import Tensor

from models.batch import EventBatch
from models.measures.quality import COLD_USER_EVENTS, NEW_ITEM_EVENTS, K, ScoredEvent
from models.networks.ranker import ranking_loss
from models.online.forecasts import Forecast, Question
from models.online.memory import Memory
from models.ranking.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class _Circumstance:
    """How things stood right before an event: was its item new, where did popularity rank it."""

    is_new_item: bool
    baseline_rank: int


class BatchForecasts:
    """Questions about the wishes `events`, at least one, put to both models."""

    def __init__(
        self, events: EventBatch, questions: list[Question], ours: Pipeline, live: Pipeline, live_every: int
    ) -> None:
        self.events = events
        self.questions = questions
        self._live_every = live_every
        self._ranker = ours.ranker
        self._ours = Forecast(ours, questions)
        self._live = Forecast(live, questions[::live_every])
        self._statistics = ours.scorer.statistics
        self._item_ids = ours.scorer.catalogue.item_ids
        self._asked = {question.position: s for s, question in enumerate(questions)}
        self._circumstances: list[_Circumstance] = []

    def reach(self, n: int, memory: Memory) -> None:
        """The stream stands right before event n, of which nothing knows yet."""
        s = self._asked.get(n)
        if s is None:
            return
        row, time_ms = int(self.events.item_N[n]), int(self.events.time_ms_N[n])
        self._ours.reach(row, time_ms)
        if s % self._live_every == 0:
            self._live.reach(row, time_ms)
        items = self._statistics.items(self._statistics.rows([self._item_ids[row]]), time_ms)
        self._circumstances.append(
            _Circumstance(
                is_new_item=bool(items.total_M[0] < NEW_ITEM_EVENTS),
                baseline_rank=memory.popularity.rank(row, self.questions[s].exclude),
            )
        )

    def score(self, memory: Memory) -> Tensor:
        """Ranks all answers, records the figures, returns the ranker's loss (float32, nats) with its
        graph."""
        output = self._ours.learn_from(self._ranker)
        ranks = self._ours.target_ranks(output.relevance_BM.detach())
        live_ranks = self._live.target_ranks(self._live.rank_all().relevance_BM)
        for s in range(len(self.questions)):
            memory.quality.add(self._scored_event(s, ranks[s]))
            if s % self._live_every == 0:
                live_rank = live_ranks[s // self._live_every]
                memory.paired.add(learner_hit=0 <= ranks[s] < K, live_hit=0 <= live_rank < K)
        return ranking_loss(output, self._ours.targets(self.events))

    def _scored_event(self, s: int, rank: int) -> ScoredEvent:
        question, circumstance = self.questions[s], self._circumstances[s]
        row = int(self.events.item_N[question.position])
        return ScoredEvent(
            rank=rank,
            baseline_rank=circumstance.baseline_rank,
            is_cold_user=len(question.past) < COLD_USER_EVENTS,
            is_new_item=circumstance.is_new_item,
            is_repeat=bool((question.past.item_T == row).any()),
            prefix_hits_C=self._ours.prefix_hits(s, row),
        )
