"""The online learner: predict each event, then learn it.

Owns the order of one micro-batch (deduplicate, predict, count, learn, remember) and everything that has to be
remembered between two of them; `models.online.learner_state` writes that down. Reads no stream and no clock:
events are a batch of columns, times are the events'.

Given the same events, seed and batch cuts, the weights are bit-identical, also across a save and load
(with the same number of torch threads).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.artifacts.manifest import JsonValue, Manifest
from models.artifacts.release import ReleaseBundle
from models.artifacts.release_meta import ReleaseMeta, config_hash
from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.device import compute_dtype
from models.errors import IncompatibleCheckpoint
from models.measures.gate import GateDecision, gate
from models.measures.quality import PrequentialQuality
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.batch_forecasts import BatchForecasts
from models.online.config import LearnerConfig
from models.online.forecasts import Question, choose
from models.online.learner_state import LearnerParts, load_parts, save_parts
from models.online.memory import Memory
from models.online.optimiser_steps import OnlineTrainer, StepReport, frozen_copy
from models.ranking.aversion import standing
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Answer, Pipeline, recommend_many
from models.sequences.dedupe import hash_id
from models.sequences.growing_windows import cut_windows, group_by_length, training_batch, whole_window
from models.sequences.histories import Past, pad_pasts
from models.sequences.stories import Story, tell

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class LearnReport:
    """What one call did. `learned_N` bool: which events of the batch were new; the others were duplicates.

    `step` is None where there was nothing to learn.
    """

    learned_N: npt.NDArray[np.bool_]
    num_scored: int = 0
    step: StepReport | None = None

    @property
    def num_learned(self) -> int:
        """Events that were new. Impressions count too, though they move no history, statistic or weight."""
        return int(np.count_nonzero(self.learned_N))

    @property
    def num_duplicates(self) -> int:
        """Events whose id was in the window already."""
        return len(self.learned_N) - self.num_learned


class OnlineLearner:
    """Learns from events in stream order, and answers like the services would."""

    def __init__(
        self,
        recommender: GenerativeRecommender,
        ranker: Ranker,
        catalogue: CatalogueIndex,
        statistics: LiveStatistics,
        config: LearnerConfig,
        search: SearchConfig,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Continues from these parts, and owns them from now on; the present weights count as the live
        release's.

        `dtype` of the training step's matrix products; by default what this machine is fastest in.
        """
        self.config = config
        self.search = search
        self.catalogue = catalogue
        self.statistics = statistics
        self.trainer = OnlineTrainer(
            recommender, ranker, config, compute_dtype(_CPU) if dtype is None else dtype
        )
        self.memory = Memory.blank(config, recommender.config.num_levels + 1)
        self.pipeline = Pipeline.build(recommender, ranker, catalogue, statistics, search)
        self.use_anchor_as_live()

    @property
    def recommender(self) -> GenerativeRecommender:
        """The weights being learned."""
        return self.trainer.recommender

    @property
    def ranker(self) -> Ranker:
        """The weights being learned."""
        return self.trainer.ranker

    @property
    def quality(self) -> PrequentialQuality:
        """How well events were predicted before they were learned."""
        return self.memory.quality

    @property
    def num_learned(self) -> int:
        """New events taken in since the beginning, learned or only observed, impressions included."""
        return self.memory.num_learned

    def use_anchor_as_live(self) -> None:
        """Makes the live release's forecasts from the trainer's anchor, which has just changed."""
        self._live = Pipeline.build(
            self.trainer.anchor_recommender,
            self.trainer.anchor_ranker,
            self.catalogue,
            self.statistics,
            self.search,
        )

    def set_live(self, bundle: ReleaseBundle) -> None:
        """This release went live: from now on it is the anchor, and what `gate` compares with. Raises
        IncompatibleCheckpoint unless `is_kin`."""
        self._require_kinship(bundle)
        self.trainer.anchor_to(bundle.recommender, bundle.ranker)
        self.use_anchor_as_live()
        self.memory.paired.clear()

    def restore_weights(self, bundle: ReleaseBundle) -> None:
        """Continues from the weights of a release, which is live; histories and statistics stay. Raises
        IncompatibleCheckpoint unless `is_kin`."""
        self._require_kinship(bundle)
        self.recommender.load_state_dict(bundle.recommender.state_dict())
        self.ranker.load_state_dict(bundle.ranker.state_dict())
        self.trainer.restart()
        self.pipeline.weights_changed()
        self.use_anchor_as_live()
        self.memory.paired.clear()

    def is_kin(self, bundle: ReleaseBundle) -> bool:
        """Whether the release has the learner's codebook and architecture: only then do its weights fit."""
        return (
            bundle.catalogue.codebook.version == self.catalogue.codebook.version
            and bundle.recommender.config == self.recommender.config
            and bundle.ranker.num_features == self.ranker.num_features
        )

    def _require_kinship(self, bundle: ReleaseBundle) -> None:
        if not self.is_kin(bundle):
            theirs, ours = bundle.catalogue.codebook.version, self.catalogue.codebook.version
            raise IncompatibleCheckpoint(
                "codebook",
                f"release {bundle.meta.release_id} has another codebook ({theirs}, the learner {ours}) or "
                "architecture",
            )

    def release_bundle(
        self,
        release_id: str,
        *,
        parent_release_id: str,
        created_time_ms: int,
        offsets: Mapping[str, int],
    ) -> ReleaseBundle:
        """A release of the present state, sharing nothing with it."""
        statistics_config = self.statistics.config
        return ReleaseBundle(
            recommender=frozen_copy(self.recommender),
            ranker=frozen_copy(self.ranker),
            catalogue=self.catalogue.copy(),
            statistics=LiveStatistics.from_state(statistics_config, *self.statistics.state()),
            meta=ReleaseMeta(
                release_id=release_id,
                parent_release_id=parent_release_id,
                codebook_version=self.catalogue.codebook.version,
                created_time_ms=created_time_ms,
                offsets=dict(offsets),
                metrics=self.memory.quality.figures(),
                config_hash=config_hash(self.recommender.config, statistics_config),
            ),
        )

    def save(
        self, directory: Path, *, offsets: Mapping[str, int], extra: Mapping[str, JsonValue]
    ) -> Manifest:
        """Writes everything, with the caller's stream position, as one new checkpoint directory."""
        parts = LearnerParts(
            trainer=self.trainer,
            memory=self.memory,
            catalogue=self.catalogue,
            statistics=self.statistics,
            search=self.search,
        )
        return save_parts(parts, directory, offsets=offsets, extra=extra)

    @classmethod
    def load(cls, directory: Path) -> tuple["OnlineLearner", dict[str, int], dict[str, Any]]:
        """The learner, offsets and extra that were saved; raises IncompatibleCheckpoint."""
        parts, offsets, extra = load_parts(directory)
        trainer = parts.trainer
        learner = cls(
            trainer.recommender,
            trainer.ranker,
            parts.catalogue,
            parts.statistics,
            trainer.config,
            parts.search,
            dtype=trainer.dtype,
        )
        learner.trainer = trainer
        learner.memory = parts.memory
        learner.use_anchor_as_live()
        return learner, offsets, extra

    def gate(self) -> GateDecision:
        """Whether the present weights may replace the live release's, by the events both predicted."""
        learner_hits, live_hits = self.memory.paired.columns()
        return gate(learner_hits, live_hits, self.config.gate_tolerance)

    def put_items(self, row_M: Sequence[int]) -> None:
        """Tells it that the content of these catalogue rows changed. New rows need no announcement."""
        for pipeline in (self.pipeline, self._live):
            pipeline.engine.put_items(row_M)

    def recommend_many(self, user_ids: Sequence[str], k: int, time_ms: int) -> list[Answer]:
        """What the services would answer these users at `time_ms`, from the present weights."""
        users = [hash_id(user_id) for user_id in user_ids]
        pasts = [self.memory.histories.get(user) for user in users]
        averse = [
            standing(self.memory.aversions.get(user), past) for user, past in zip(users, pasts, strict=True)
        ]
        return recommend_many(
            self.pipeline,
            pad_pasts(pasts, self.recommender.config.max_history),
            k=k,
            time_ms_B=[time_ms] * len(pasts),
            exclude=[
                np.unique(np.concatenate([past.item_T, averse_A]))
                for past, averse_A in zip(pasts, averse, strict=True)
            ],
            averse=averse,
        )

    def observe_many(self, events: EventBatch) -> LearnReport:
        """Remembers events (histories, statistics, reservoir) without predicting or learning them."""
        learned_N, events = self._fresh(events)
        if len(events):
            wishes = events.select(events.is_wish_N)
            stories, _ = tell(wishes, self.memory.histories)
            for n in range(len(wishes)):
                self._count(wishes, n)
            self._remember(events, stories)
        return LearnReport(learned_N=learned_N)

    def learn_many(self, events: EventBatch) -> LearnReport:
        """Predicts, then learns a micro-batch in stream order; duplicates are left out.

        Wishes are predicted and learned. What was turned down is remembered; what was only shown is not.
        Raises ValueError, before anything changed, for a row that is not in the catalogue. After any other
        error, none of the events counts as known: the batch may be learned again.
        """
        learned_N, events = self._fresh(events)
        if not len(events):
            return LearnReport(learned_N=learned_N)
        wishes = events.select(events.is_wish_N)
        stories, pasts = tell(wishes, self.memory.histories)
        questions = choose(
            wishes, pasts, self.memory.aversions, self.config.score_every, self.memory.num_wishes
        )
        self.memory.num_wishes += len(wishes)
        replayed = self.memory.reservoir.draw(
            round(len(wishes) * self.config.replay_ratio), self.memory.random
        )
        ranker_loss = None
        # not in the trainer's format: a forecast is what serving would have answered
        forecasts = self._forecast(wishes, questions)
        for n in range(len(wishes)):
            if forecasts is not None:
                forecasts.reach(n, self.memory)
            self._count(wishes, n)
        if forecasts is not None:
            ranker_loss = forecasts.score(self.memory)
        step = self._learn(stories, replayed, ranker_loss) if len(wishes) else None
        # last: an event that is remembered is never learned again
        self._remember(events, stories)
        self.memory.quality.mark(self.memory.num_learned)
        return LearnReport(learned_N=learned_N, num_scored=len(questions), step=step)

    def _forecast(self, events: EventBatch, questions: list[Question]) -> BatchForecasts | None:
        if not questions:
            return None
        return BatchForecasts(events, questions, self.pipeline, self._live, self.config.gate_every)

    # -- one batch, step by step --

    def _fresh(self, events: EventBatch) -> tuple[npt.NDArray[np.bool_], EventBatch]:
        if len(events) and not 0 <= events.item_N.min() <= events.item_N.max() < len(self.catalogue):
            raise ValueError("an event's row is not in the catalogue")
        fresh_N = self.memory.dedupe.fresh(events.keys)
        return fresh_N, events.select(fresh_N)

    def _count(self, events: EventBatch, n: int) -> None:
        """Event n happened: statistics and popularity."""
        row, action = int(events.item_N[n]), int(events.action_N[n])
        item_id, time_ms = self.catalogue.item_ids[row], int(events.time_ms_N[n])
        if self.statistics.update(events.user_ids[n], item_id, action, time_ms):
            self.memory.popularity.add(row)

    def _remember(self, events: EventBatch, stories: list[Story]) -> None:
        for story in stories:
            self.memory.histories.add(story.user, story.new)
            if len(story.past) > 1:
                newest = story.newest(self.recommender.config.max_history + 1)
                self.memory.reservoir.offer(newest, self.memory.random)
        self._remember_aversions(events.select(events.is_aversion_N))
        self.memory.dedupe.add_many(events.keys)
        self.memory.num_learned += len(events)

    def _remember_aversions(self, events: EventBatch) -> None:
        for n, user_id in enumerate(events.user_ids):
            one = slice(n, n + 1)
            past = Past(events.item_N[one], events.action_N[one], events.time_ms_N[one])
            self.memory.aversions.add(hash_id(user_id), past)

    def _learn(self, stories: list[Story], replayed: list[Past], ranker_loss: Tensor | None) -> StepReport:
        """The optimiser steps: the batch's events and replayed sequences, and the ranker's examples."""
        max_history = self.recommender.config.max_history
        windows = [
            window for story in stories for window in cut_windows(story.past, story.is_new_T, max_history)
        ]
        windows += map(whole_window, replayed)
        groups = group_by_length(windows)
        batches = [training_batch(group, max_history) for group in groups]
        targets = [rows.flatten() for batch in batches for rows in (batch.target_BT, batch.first_B)]
        row_X = np.unique(torch.cat(targets).numpy())
        self.recommender.identities.add(self.catalogue.codes_NC[torch.from_numpy(row_X[row_X >= 0])])
        step = self.trainer.step(batches, ranker_loss, self.catalogue)
        self.pipeline.weights_changed()
        return step
