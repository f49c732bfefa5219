"""The learner at work: one model, its place in the stream, its ledger; used by the learning thread only.

Each batch is read, learned, written to the ledger and counted; a checkpoint takes model and place
together, so that a kill at any moment loses nothing and repeats nothing.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import compress

import structlog

from models.artifacts.release import ReleaseBundle
from models.online.learner import LearnReport, OnlineLearner
from protos.headrace.v1.items_pb2 import ItemSid
from protos.headrace.v1.learner_pb2 import StatusResponse
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services import metrics
from services.learner import report
from services.learner.checkpoints import CheckpointStore, ledger_name_of
from services.learner.ledger import Ledger
from services.learner.position import LearnerPosition
from services.learner.release_desk import ReleaseDesk
from services.learner.step import BatchLearner, Failure
from services.learner.stream import LearnerStream
from services.memory import give_back
from services.model_host.live_catalogue import LiveCatalogue
from services.settings import Settings
from streaming.errors import BrokerUnavailable
from streaming.messages.records import Record

log = structlog.get_logger()

# The lag of a stream that brings nothing is asked for less often: each question wakes the broker too.
_LAG_INTERVAL_S, _IDLE_LAG_INTERVAL_S = 2.0, 10.0
_BROKER_RETRY_S = 1.0
_RATE_WINDOW_S = 5.0


class LearnerWork:
    """Everything between a start and a stop; what it opens is closed with `resources`."""

    def __init__(
        self,
        settings: Settings,
        learner: OnlineLearner,
        position: LearnerPosition,
        store: CheckpointStore,
        resources: ExitStack,
    ) -> None:
        self._settings = settings
        self._store = store
        self.learner = learner
        self.position = position
        self._catalogue = LiveCatalogue()
        self._catalogue.swap(learner.catalogue)
        self._batches = BatchLearner(learner, settings.meaning)
        self._stream = resources.enter_context(
            LearnerStream(settings, position, is_known=self._is_known, insert_many=self._insert_many)
        )
        self._ledger: Ledger | None = None
        if settings.learner_service.ledger:
            position.ledger_name = position.ledger_name or ledger_name_of(position.live_release_id)
            path = store.ledger_path(position.ledger_name)
            self._ledger = resources.enter_context(Ledger(path, num_bytes=position.ledger_bytes))
        self._figures = report.Figures()
        self._checkpointed_s = -float("inf")
        self._saved: tuple[object, ...] | None = None
        self._lag_asked_s, self._lag_asked_at = -float("inf"), dict[str, int]()
        self._rate_since_s, self._rate_learned = time.monotonic(), position.num_learned
        self._stream.catch_up()
        report.read_quality(learner, self._figures)

    def learn_next(self, stopping: threading.Event) -> None:
        """Reads and learns one batch, if anything came. Raises LearningFails."""
        try:
            records = self._stream.take()
        except BrokerUnavailable as error:
            log.warning("broker_unavailable", error=str(error))
            stopping.wait(_BROKER_RETRY_S)
            return
        if records:
            result = self._batches.learn(records)
            if isinstance(result, Failure):
                self._give_up(records, result)
            else:
                self._account(records, result)
        self._measure()

    def write_checkpoint(self) -> None:
        """Model and place, atomically, as the newest checkpoint; raises OSError, the old one intact."""
        position = self._present_position()
        position.deferred = self._stream.deferred()
        position.checkpoint_time_ms = time.time_ns() // 1_000_000
        if self._ledger is not None:
            position.ledger_bytes = self._ledger.flush()
        self._store.save(self.learner, position)
        self._saved = self._progress()
        self._checkpointed_s = time.monotonic()
        give_back()
        log.info("checkpoint", num_learned=position.num_learned, num_deferred=len(position.deferred))

    def checkpoint_if_due(self) -> None:
        """A checkpoint, if the last one is older than the interval.

        Where nothing has changed since the last one, that one is as good as new.
        """
        if time.monotonic() - self._checkpointed_s < self._settings.learner_service.checkpoint_interval_s:
            return
        if self._progress() == self._saved:
            self._checkpointed_s = time.monotonic()
            metrics.CHECKPOINT_SUCCESS.set_to_current_time()
            return
        self.try_checkpoint()

    def try_checkpoint(self) -> None:
        """A checkpoint; a full disk is an alarm, not an end."""
        try:
            self.write_checkpoint()
        except OSError as error:
            # The old one is intact, and `headrace_checkpoint_last_success_timestamp_seconds` stands still.
            self._checkpointed_s = time.monotonic()
            log.error("checkpoint_failed", exc_info=error)

    def _progress(self) -> tuple[object, ...]:
        """What changes whenever a checkpoint would be another."""
        offsets = tuple(sorted(self._stream.offsets.items()))
        counts = (self.position.num_learned, self.position.num_since_release, len(self.learner.catalogue))
        return offsets, len(self._stream.deferred()), counts, self.position.live_release_id

    def release_if_due(self, desk: ReleaseDesk) -> None:
        """A release, if enough events were learned since the last one and that is still the live one."""
        if self.position.num_since_release < self._settings.learner_service.release_interval_events:
            return
        self.position.num_since_release = 0
        live = desk.live()
        if live is not None and live.release_id != self.position.live_release_id:
            return
        release, bundle = desk.cut(self.learner, self._stream.offsets, live)
        if release.state == RELEASE_STATE_LIVE:
            self.follow(bundle)

    def follow(self, bundle: ReleaseBundle) -> None:
        """A release went live: it is what the learner is anchored to; its own weights stay."""
        self.learner.set_live(bundle)
        self.position.live_release_id = bundle.meta.release_id

    def go_back_to(self, bundle: ReleaseBundle) -> None:
        """Takes over a live release's weights; histories, statistics and place stay."""
        self.learner.restore_weights(bundle)
        self.position.live_release_id = bundle.meta.release_id
        self.position.num_since_release = 0
        self.write_checkpoint()

    def status(self, state: str) -> StatusResponse:
        """Everything an operator asks for, as of now."""
        return report.status_response(state, self._present_position(), self._figures)

    def _present_position(self) -> LearnerPosition:
        self.position.offsets = self._stream.offsets
        self.position.num_dead_lettered = self._stream.num_dead_lettered
        return self.position

    def _is_known(self, item_id: str) -> bool:
        return self.learner.catalogue.row(item_id) is not None

    def _insert_many(self, sids: Sequence[ItemSid]) -> None:
        """Takes announced items; those of another codebook version are kept for a release that has it."""
        self.learner.put_items(self._catalogue.put_many(sids).changed_rows)

    def _account(self, records: Sequence[Record], result: LearnReport) -> None:
        if self._ledger is not None:
            self._ledger.append(
                record.message.event_id for record in compress(records, result.learned_N.tolist())
            )
        self.position.num_learned += result.num_learned
        self.position.num_since_release += result.num_learned
        self.position.num_duplicate += result.num_duplicates
        report.count_batch(records, result, self._figures)
        report.read_quality(self.learner, self._figures)
        log.info(
            "batch",
            num_events=len(records),
            num_learned=result.num_learned,
            num_scored=result.num_scored,
            train_loss=round(self._figures.train_loss, 4),
            recall_at_10=round(self._figures.quality[0].recall_at_10, 4),
        )

    def _give_up(self, records: Sequence[Record], failure: Failure) -> None:
        """Sets a batch aside; raises BrokerUnavailable if it cannot be, which ends the process: a restart
        reads it again from the checkpoint."""
        self._stream.reject(records, reason=failure.reason, exception=failure.trace)
        log.error("batch_set_aside", num_events=len(records), reason=failure.reason)

    def _measure(self) -> None:
        now = time.monotonic()
        offsets = self._stream.offsets
        figures = self._figures
        is_idle = offsets == self._lag_asked_at and not figures.lag_records and not figures.stalled
        if now - self._lag_asked_s >= (_IDLE_LAG_INTERVAL_S if is_idle else _LAG_INTERVAL_S):
            self._lag_asked_s, self._lag_asked_at = now, offsets
            report.count_lag(self._stream.lag(), self._stream.hidden(), figures)
        if now - self._rate_since_s >= _RATE_WINDOW_S:
            learned = self.position.num_learned - self._rate_learned
            figures.events_per_s = learned / (now - self._rate_since_s)
            self._rate_since_s, self._rate_learned = now, self.position.num_learned
            if learned:
                # batches of ever other shapes leave the heap full of holes: 150 MB between two checkpoints
                give_back()
