"""The live release and the live statistics as the ranker serves them.

Everything here but `load` runs in the model thread. Knows no gRPC and no broker.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.artifacts.release import ReleaseBundle
from models.batch import ACTION_NAMES, HistoryBatch
from models.candidates import Candidates, Source, proposed_by
from models.decoding.config import SearchConfig
from models.decoding.cpu_engine import CpuEngine
from models.errors import IncompatibleCheckpoint
from models.ranking.live_statistics import LiveStatistics
from models.ranking.scorer import RankResult, Scorer, order_by_score
from models.sequences.dedupe import DedupeWindow
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import ItemSid
from protos.headrace.v1.ranker_pb2 import Explanation, RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import Feature
from services.errors import NotReady, WrongRelease
from services.memory import give_back
from services.metrics import stage
from services.model_host.live_catalogue import LiveCatalogue
from services.wire import translate
from services.wire.translate import PastEvent
from streaming.messages.meaning import EventMeaning

# Longer than any request may take from the generator to here.
_PREVIOUS_S = 15.0
# A trunk ends with a layer norm, so its states are of the size of the norm's weights.
_MAX_STATE = 1e6


@dataclass(frozen=True)
class RankerRelease:
    """A release, encoded and warmed up."""

    release_id: str
    scorer: Scorer


class RankerServing:
    """Ranks by the live release, or by the one before it if a request began with that.

    `dedupe_window`: an event id that repeats within this many counts once, as in the learner.
    """

    def __init__(self, dedupe_window: int, *, search: SearchConfig, meaning: EventMeaning) -> None:
        self._aversion_weight = search.aversion_weight
        self._meaning = meaning
        self._catalogue = LiveCatalogue()
        self._statistics: LiveStatistics | None = None
        self._live: RankerRelease | None = None
        self._previous: RankerRelease | None = None
        self._previous_until_s = 0.0
        self._known_events = DedupeWindow(dedupe_window)

    @property
    def live_release_id(self) -> str:
        """The live release, empty before the first."""
        return "" if self._live is None else self._live.release_id

    def has(self, release_id: str) -> bool:
        """Whether a request that insists on this release can be answered; an empty id insists on none."""
        served = [release.release_id for release in (self._live, self._previous) if release is not None]
        return release_id in ("", *served)

    def load(self, bundle: ReleaseBundle) -> RankerRelease:
        """Prepares a release beside the live one; the first also brings the statistics, up to its offsets.

        They count only once it is live (`swap`): those of a release that is refused here belong to other
        offsets than the next one's. Raises IncompatibleCheckpoint if the ranker was made for other statistics
        than those that are live.
        """
        statistics = bundle.statistics if self._statistics is None else self._statistics
        if statistics.config != bundle.statistics.config:
            problem = "the release keeps other live statistics than this service; start the service again"
            raise IncompatibleCheckpoint("statistics", problem)
        self._catalogue.prepare(bundle.catalogue)
        engine = CpuEngine(bundle.recommender, bundle.catalogue, bundle.ranker)
        scorer = Scorer(engine, statistics, aversion_weight=self._aversion_weight)
        # by the release's own statistics: the model thread counts events in the live ones meanwhile
        _warm_up(Scorer(engine, bundle.statistics, aversion_weight=self._aversion_weight))
        return RankerRelease(bundle.meta.release_id, scorer)

    def swap(self, loaded: RankerRelease) -> None:
        """Makes a loaded release the live one; the one before still answers requests that name it."""
        changes = self._catalogue.swap(loaded.scorer.catalogue)
        loaded.scorer.engine.put_items(changes.changed_rows)
        self._statistics = loaded.scorer.statistics
        self._previous, self._live = self._live, loaded
        self._previous_until_s = time.monotonic() + _PREVIOUS_S

    def _forget_previous(self) -> None:
        """Requests that began with the release before have their answers by now, and it takes as much memory
        as the live one."""
        if self._previous is not None and time.monotonic() > self._previous_until_s:
            self._previous = None
            give_back()

    def put_items(self, sids: Sequence[ItemSid]) -> None:
        """Takes announced items."""
        changes = self._catalogue.put_many(sids)
        if self._live is not None:
            self._live.scorer.engine.put_items(changes.changed_rows)

    def put_events(self, events: Sequence[Event]) -> None:
        """Counts events in the live statistics, each once."""
        self._forget_previous()
        if self._statistics is None:
            raise NotReady("events cannot be counted before the first release")
        batch = translate.event_batch(events, np.zeros(len(events), dtype=np.int64), self._meaning)
        fresh_N = self._known_events.fresh(batch.keys)
        for n in np.nonzero(fresh_N)[0].tolist():
            action, time_ms = int(batch.action_N[n]), int(batch.time_ms_N[n])
            self._statistics.update(events[n].user_id, events[n].item_id, action, time_ms)
        self._known_events.add_many(batch.select(fresh_N).keys)

    def rank_many(self, requests: Sequence[RankRequest]) -> list[RankResponse]:
        """Answers validated requests for one release, in order; raises NotReady, WrongRelease."""
        self._forget_previous()
        release = self._release(requests[0].release_id)
        scorer = release.scorer
        with stage("score", len(requests)):
            asked = [_Asked.of(request, scorer, self._meaning) for request in requests]
            results = scorer.rank_many(
                translate.past_batch([one.past for one in asked], scorer.engine.config.max_history),
                [one.candidates for one in asked],
                [one.time_ms for one in asked],
                _user_states(requests, release),
                [one.averse_A for one in asked],
            )
            return [
                _response(release, one.candidates, result, request.explain_item_id)
                for request, one, result in zip(requests, asked, results, strict=True)
            ]

    def _release(self, wanted: str) -> RankerRelease:
        if self._live is None:
            raise NotReady("no release is loaded yet")
        for release in (self._live, self._previous):
            if release is not None and wanted in ("", release.release_id):
                return release
        raise WrongRelease(f"release {wanted} is not live here; {self._live.release_id} is")


def _warm_up(scorer: Scorer) -> None:
    rows = np.nonzero(scorer.catalogue.available_N)[0][:50].astype(np.int64)
    recent = rows[:5].tolist()
    history = HistoryBatch.from_lists(
        [recent],
        [[1] * len(recent)],
        [list(range(len(recent)))],
        max_history=scorer.engine.config.max_history,
    )
    scorer.rank(history, scorer.live_sources.add(proposed_by(Source.DENSE, rows), rows[:5], 0), 0)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One request in the model's terms."""

    past: list[PastEvent]
    averse_A: Int64Array
    candidates: Candidates
    time_ms: int

    @classmethod
    def of(cls, request: RankRequest, scorer: Scorer, meaning: EventMeaning) -> "_Asked":
        """With the candidates of the live sources."""
        catalogue = scorer.catalogue
        past = translate.known_past(request.history, catalogue, meaning)
        time_ms = request.request_time_ms or int(time.time() * 1e3)
        recent = past[-scorer.engine.config.max_history :]
        candidates = scorer.live_sources.add(
            translate.candidates_of(request.candidates, catalogue),
            np.array([row for row, _, _ in recent], dtype=np.int64),
            time_ms,
            disabled=translate.to_sources(request.disabled_sources),
            exclude=translate.known_rows(catalogue, request.exclude_item_ids),
        )
        averse_A = translate.averse_rows(request.history, catalogue, meaning)
        return cls(past=past, averse_A=averse_A, candidates=candidates, time_ms=time_ms)


def _user_states(requests: Sequence[RankRequest], release: RankerRelease) -> Tensor | None:
    """The generator's states of these very histories, [B, D]; None unless it sent all, for this release.

    None too where a number is one that no state has: products with it may be no numbers.
    """
    width = release.scorer.engine.config.d_model
    for request in requests:
        if request.release_id != release.release_id or len(request.user_state) != 4 * width:
            return None
    state_BD = np.frombuffer(b"".join(request.user_state for request in requests), dtype="<f4")
    if not (np.abs(state_BD) < _MAX_STATE).all():  # NaN is not
        return None
    return torch.from_numpy(state_BD.astype(np.float32).reshape(len(requests), width))


def _response(
    release: RankerRelease, candidates: Candidates, result: RankResult, explain_item_id: str
) -> RankResponse:
    """The candidates, best first, with what is known of the one to explain."""
    scorer = release.scorer
    id_of = scorer.catalogue.item_ids
    item_ids = [id_of[row] for row in candidates.row_M.tolist()]
    order_M = order_by_score(result.score_M, item_ids)
    explanation = None
    if explain_item_id in item_ids:
        explanation = _explanation(scorer, result, item_ids.index(explain_item_id))
    return RankResponse(
        release_id=release.release_id,
        item_ids=[item_ids[m] for m in order_M.tolist()],
        scores=result.score_M[order_M].tolist(),
        source_masks=candidates.source_M[order_M].tolist(),
        explanation=explanation,
    )


def _explanation(scorer: Scorer, result: RankResult, m: int) -> Explanation:
    features = zip(scorer.feature_names, result.feature_MF[m].tolist(), strict=True)
    probabilities = zip(ACTION_NAMES[1:], result.action_probability_MA[m, 1:].tolist(), strict=True)
    return Explanation(
        action_probabilities=dict(probabilities),
        features=[Feature(name=name, value=value) for name, value in features],
    )
