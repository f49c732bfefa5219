"""The live release and the live statistics as the ranker serves them.

Everything here but `load` runs in the model thread. Knows no gRPC and no broker.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.batch import ACTION_NAMES, Candidates, HistoryBatch, Int64Array
from models.candidates import Source, add_live_candidates, proposed_by
from models.dedupe import DedupeWindow
from models.errors import IncompatibleCheckpoint
from models.release import ReleaseBundle
from models.scoring import RankResult, Scorer, order_by_score
from models.statistics import LiveStatistics
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import ItemSid
from protos.headrace.v1.ranker_pb2 import RankedItem, RankRequest, RankResponse
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
                _without(translate.candidates_of(request.candidates, catalogue), exclude),
                scorer.statistics,
                catalogue,
                recent_rows,
                time_ms,
                disabled=translate.to_sources(request.disabled_sources),
                exclude=exclude,
            )
            items = []
            if len(candidates):
                result = scorer.rank(history, candidates, time_ms)
                items = _items(scorer, candidates, result, explain=request.explain)
        return RankResponse(items=items, release_id=release.release_id)

    def _release(self, wanted: str) -> LoadedRelease:
        if self._live is None:
            raise NotReady("no release is loaded yet")
        for release in (self._live, self._previous):
            if release is not None and wanted in ("", release.release_id):
                return release
        raise WrongRelease(f"release {wanted} is not live here; {self._live.release_id} is")


def _without(candidates: Candidates, exclude: Int64Array) -> Candidates:
    keep_M = ~np.isin(candidates.row_M, exclude)
    return Candidates(
        row_M=candidates.row_M[keep_M],
        source_M=candidates.source_M[keep_M],
        beam_M=candidates.beam_M[keep_M],
        dense_M=candidates.dense_M[keep_M],
    )


def _items(scorer: Scorer, candidates: Candidates, result: RankResult, *, explain: bool) -> list[RankedItem]:
    item_ids = [scorer.catalogue.item_ids[row] for row in candidates.row_M.tolist()]
    scores, masks = result.score_M.tolist(), candidates.source_M.tolist()
    probabilities = result.action_probability_MA[:, 1:].tolist()
    items = []
    for m in order_by_score(result.score_M, item_ids).tolist():
        item = RankedItem(
            item_id=item_ids[m],
            score=scores[m],
            sources=translate.from_mask(masks[m]),
            action_probabilities=dict(zip(ACTION_NAMES[1:], probabilities[m], strict=True)),
        )
        if explain:
            features = zip(scorer.feature_names, result.feature_MF[m].tolist(), strict=True)
            item.features.extend(Feature(name=name, value=value) for name, value in features)
        items.append(item)
    return items
