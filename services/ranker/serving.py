"""The live release and the live statistics as the ranker serves them.

Everything here but `load` runs in the model thread. Knows no gRPC and no broker.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import ACTION_NAMES, Candidates, HistoryBatch
from models.candidates import Source, add_live_candidates, proposed_by
from models.dedupe import DedupeWindow
from models.errors import IncompatibleCheckpoint
from models.release import ReleaseBundle
from models.scoring import RankResult, Scorer, order_by_score
from models.statistics import LiveStatistics
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import ItemSid
from protos.headrace.v1.ranker_pb2 import RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import Feature
from services import translate
from services.errors import NotReady, WrongRelease
from services.live_catalogue import LiveCatalogue
from services.metrics import STAGE_SECONDS


@dataclass(frozen=True)
class LoadedRelease:
    """A release, encoded and warmed up."""

    release_id: str
    scorer: Scorer


class RankerServing:
    """Ranks by the live release, or by the one before it if a request began with that.

    `dedupe_window`: a repeated event id among so many counts once, as in the learner.
    """

    def __init__(self, dedupe_window: int) -> None:
        self._catalogue = LiveCatalogue()
        self._statistics: LiveStatistics | None = None
        self._live: LoadedRelease | None = None
        self._previous: LoadedRelease | None = None
        self._known_events = DedupeWindow(dedupe_window)

    @property
    def live_release_id(self) -> str:
        """The live release, empty before the first."""
        return "" if self._live is None else self._live.release_id

    def has(self, release_id: str) -> bool:
        """Whether a request that insists on this release can be answered; an empty id insists on none."""
        served = [release.release_id for release in (self._live, self._previous) if release is not None]
        return release_id in ("", *served)

    def load(self, bundle: ReleaseBundle) -> LoadedRelease:
        """Prepares a release beside the live one; the first also brings the statistics, up to its offsets.

        Raises IncompatibleCheckpoint if the ranker was made for other statistics than those that are live.
        """
        if self._statistics is None:
            self._statistics = bundle.statistics
        elif self._statistics.config != bundle.statistics.config:
            problem = "the release keeps other live statistics than this service; start the service again"
            raise IncompatibleCheckpoint("statistics", problem)
        self._catalogue.prepare(bundle.catalogue)
        scorer = Scorer(bundle.recommender, bundle.ranker, bundle.catalogue, self._statistics)
        rows = np.nonzero(bundle.catalogue.available_N)[0][:50].astype(np.int64)
        warm = HistoryBatch.from_lists(
            [rows[:5].tolist()],
            [[1] * len(rows[:5])],
            [list(range(len(rows[:5])))],
            max_history=bundle.recommender.config.max_history,
        )
        scorer.rank(warm, proposed_by(Source.DENSE, rows), 0)
        return LoadedRelease(bundle.meta.release_id, scorer)

    def swap(self, loaded: LoadedRelease) -> None:
        """Makes a loaded release the live one; the one before goes on answering those who ask for it."""
        changes = self._catalogue.swap(loaded.scorer.catalogue)
        if changes.content_changed:
            loaded.scorer.table.refresh()
        self._previous, self._live = self._live, loaded

    def put_items(self, sids: Sequence[ItemSid]) -> None:
        """Takes announced items."""
        changes = self._catalogue.put_many(sids)
        if changes.content_changed and self._live is not None:
            self._live.scorer.table.refresh()

    def put_events(self, events: Sequence[Event]) -> None:
        """Counts events in the live statistics, each once."""
        if self._statistics is None:
            raise NotReady("events cannot be counted before the first release")
        event_ids = [event.event_id for event in events]
        fresh_N = self._known_events.fresh(event_ids)
        for event, is_fresh in zip(events, fresh_N, strict=True):
            if is_fresh:
                self._statistics.update(event.user_id, event.item_id, event.action, event.event_time_ms)
        self._known_events.add_many([event_ids[n] for n in np.nonzero(fresh_N)[0]])

    def rank(self, request: RankRequest) -> RankResponse:
        """Answers a validated request; raises NotReady, WrongRelease."""
        release = self._release(request.release_id)
        scorer, catalogue = release.scorer, release.scorer.catalogue
        time_ms = request.request_time_ms or int(time.time() * 1e3)
        with STAGE_SECONDS.labels("rank").time():
            history = translate.history_batch(
                request.history, catalogue, scorer.recommender.config.max_history
            )
            exclude = translate.known_rows(catalogue, request.exclude_item_ids)
            recent_rows = history.item_BT[0, : int(history.length_B[0])].numpy()
            candidates = add_live_candidates(
                translate.candidates_of(request.candidates, catalogue),
                scorer.statistics,
                catalogue,
                recent_rows,
                time_ms,
                disabled=translate.to_sources(request.disabled_sources),
                exclude=exclude,
            )
            response = RankResponse(release_id=release.release_id)
            if len(candidates):
                state_1D = _user_state(request, release)
                result = scorer.rank(history, candidates, time_ms, state_1D)
                _add_items(response, scorer, candidates, result, explain=request.explain)
        return response

    def _release(self, wanted: str) -> LoadedRelease:
        if self._live is None:
            raise NotReady("no release is loaded yet")
        for release in (self._live, self._previous):
            if release is not None and wanted in ("", release.release_id):
                return release
        raise WrongRelease(f"release {wanted} is not live here; {self._live.release_id} is")


def _user_state(request: RankRequest, release: LoadedRelease) -> Tensor | None:
    """The generator's state of this very history, [1, D]; None if it sent none for this release."""
    width = release.scorer.recommender.config.d_model
    if request.release_id != release.release_id or len(request.user_state) != 4 * width:
        return None
    state_D = np.frombuffer(request.user_state, dtype="<f4").astype(np.float32)
    return torch.from_numpy(state_D)[None] if np.isfinite(state_D).all() else None


def _add_items(
    response: RankResponse, scorer: Scorer, candidates: Candidates, result: RankResult, *, explain: bool
) -> None:
    """The candidates into `response`, best first."""
    item_ids = [scorer.catalogue.item_ids[row] for row in candidates.row_M.tolist()]
    scores, masks = result.score_M.tolist(), candidates.source_M.tolist()
    probabilities = result.action_probability_MA.tolist()
    for m in order_by_score(result.score_M, item_ids).tolist():
        item = response.items.add(item_id=item_ids[m], score=scores[m], sources=translate.from_mask(masks[m]))
        of_action = item.action_probabilities
        for name, probability in zip(ACTION_NAMES[1:], probabilities[m][1:], strict=True):
            of_action[name] = probability
        if explain:
            features = zip(scorer.feature_names, result.feature_MF[m].tolist(), strict=True)
            item.features.extend(Feature(name=name, value=value) for name, value in features)
