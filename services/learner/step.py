"""One micro-batch through the learner: retries, and what to do when learning fails.

It does not read the stream and does not write the ledger.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from models.online.learner import LearnReport, OnlineLearner
from services import metrics
from services.errors import ServiceError
from services.wire.translate import event_batch
from streaming.messages.meaning import EventMeaning
from streaming.messages.records import Record

log = structlog.get_logger()

_NUM_ATTEMPTS = 3
_MAX_FAILED_IN_A_ROW = 3


class LearningFails(ServiceError):
    """Several batches in a row could not be learned: the fault is ours, not the events'."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a batch is not learned: one word for counters and headers, and the traceback."""

    reason: str
    trace: str


class BatchLearner:
    """Learns batches with `learner`; counts failures in a row."""

    def __init__(self, learner: OnlineLearner, meaning: EventMeaning) -> None:
        self._learner = learner
        self._meaning = meaning
        self._num_failed_in_a_row = 0

    def learn(self, records: Sequence[Record]) -> LearnReport | Failure:
        """Learns records whose items are all known, in up to three tries.

        Raises LearningFails after too many failed batches in a row.
        """
        events = [record.message for record in records]
        rows_N = self._learner.catalogue.rows([event.item_id for event in events])
        batch = event_batch(events, rows_N, self._meaning)
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            started = time.perf_counter()
            try:
                report = self._learner.learn_many(batch)
            except Exception as error:
                trace = traceback.format_exc()
                log.error("learning_failed", attempt=attempt, num_events=len(batch), exc_info=error)
                continue
            self._num_failed_in_a_row = 0
            metrics.TRAIN_STEP_SECONDS.observe(time.perf_counter() - started)
            return report
        self._num_failed_in_a_row += 1
        if self._num_failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise LearningFails(f"{_MAX_FAILED_IN_A_ROW} batches in a row failed; the last: {trace}")
        return Failure(reason="learn_failed", trace=trace)
