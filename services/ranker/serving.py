"""The live release and the live statistics as the ranker serves them.

A tenant of `services.model_host.host`, which says what is called under the model's lock. Knows no gRPC and no
broker.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.artifacts.release import ReleaseBundle
from models.batch import ACTION_NAMES, HistoryBatch
from models.candidates import Source, proposed_by
from models.decoding.config import SearchConfig
from models.errors import IncompatibleCheckpoint
from models.ranking.live_statistics import LiveStatistics
from models.ranking.scorer import RankResult, Scorer
from models.sequences.dedupe import DedupeWindow
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.ranker_pb2 import Explanation, RankRequest, RankResponse
from protos.headrace.v1.recommend_pb2 import Feature
from services.errors import NotReady, WrongRelease
from services.memory import give_back
from services.metrics import stage
from services.model_host.host import HostedRelease
from services.model_host.live_catalogue import Changes
from services.ranker.ranking import Asked, Asking, Found, Ranked, rank
from services.wire import translate
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
    """Ranks by the live release, or by the one before it if a request began with that. A
    `services.model_host.host.Tenant`.

    `dedupe_window`: an event id that repeats within this many counts once, as in the learner.
    """

    name = "ranker"
    counts_events = True

    def __init__(self, dedupe_window: int, *, search: SearchConfig, meaning: EventMeaning) -> None:
        self._aversion_weight = search.aversion_weight
        self._meaning = meaning
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

    def load(self, hosted: HostedRelease, bundle: ReleaseBundle) -> RankerRelease:
        """Prepares a release beside the live one; the first also brings the statistics, up to its offsets.

        They count only once it is live (`swap`): those of a release that is refused here belong to other
        offsets than the next one's. Raises IncompatibleCheckpoint if the ranker was made for other statistics
        than those that are live.
        """
        statistics = bundle.statistics if self._statistics is None else self._statistics
        if statistics.config != bundle.statistics.config:
            problem = "the release keeps other live statistics than this service; start the service again"
            raise IncompatibleCheckpoint("statistics", problem)
        scorer = Scorer(hosted.engine, statistics, aversion_weight=self._aversion_weight)
        # by the release's own statistics: the model thread counts events in the live ones meanwhile
        _warm_up(Scorer(hosted.engine, bundle.statistics, aversion_weight=self._aversion_weight))
        return RankerRelease(hosted.release_id, scorer)

    def swap(self, loaded: RankerRelease) -> None:
        """Makes a loaded release the live one; the one before still answers requests that name it."""
        self._statistics = loaded.scorer.statistics
        self._previous, self._live = self._live, loaded
        self._previous_until_s = time.monotonic() + _PREVIOUS_S

    def _forget_previous(self) -> None:
        """Requests that began with the release before have their answers by now, and it takes as much memory
        as the live one."""
        if self._previous is not None and time.monotonic() > self._previous_until_s:
            self._previous = None
            give_back()

    def items_changed(self, changes: Changes, *, is_live: bool) -> None:
        """Nothing that it keeps depends on it: the engine and the catalogue are the host's."""

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
        catalogue = release.scorer.catalogue
        with stage("score", len(requests)):
            asked = [
                Asked.of(
                    request,
                    translate.known_past(request.history, catalogue, self._meaning),
                    translate.candidates_of(request.candidates, catalogue),
                    translate.known_rows(catalogue, request.exclude_item_ids),
                    release.scorer,
                    self._meaning,
                )
                for request in requests
            ]
            ranked = rank(release.scorer, asked, _user_states(requests, release))
            return [
                _response(release, one, request.explain_item_id)
                for request, one in zip(requests, ranked, strict=True)
            ]

    def rank_found(self, requests: Sequence[Asking], found: Sequence[Found]) -> list[Ranked]:
        """Ranks by the live release what was found in it for these requests; raises NotReady."""
        self._forget_previous()
        scorer = self._release("").scorer
        with stage("score", len(requests)):
            asked = [
                Asked.of(request, one.past, one.candidates, one.exclude_X, scorer, self._meaning)
                for request, one in zip(requests, found, strict=True)
            ]
            return rank(scorer, asked, torch.cat([one.state_1D for one in found]))

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


def _response(release: RankerRelease, ranked: Ranked, explain_item_id: str) -> RankResponse:
    """The candidates, best first, with what is known of the one to explain."""
    rows, scores, source_masks = ranked.columns()
    item_ids = [release.scorer.catalogue.item_ids[row] for row in rows]
    explanation = None
    if explain_item_id in item_ids:
        m = int(ranked.order_M[item_ids.index(explain_item_id)])
        explanation = _explanation(release.scorer, ranked.result, m)
    return RankResponse(
        release_id=release.release_id,
        item_ids=item_ids,
        scores=scores,
        source_masks=source_masks,
        explanation=explanation,
    )


def _explanation(scorer: Scorer, result: RankResult, m: int) -> Explanation:
    features = zip(scorer.feature_names, result.feature_MF[m].tolist(), strict=True)
    probabilities = zip(ACTION_NAMES[1:], result.action_probability_MA[m, 1:].tolist(), strict=True)
    return Explanation(
        action_probabilities=dict(probabilities),
        features=[Feature(name=name, value=value) for name, value in features],
    )
