"""The loop that turns the topic `interactions` into histories, each event exactly once.

Joins a consumer and a history store: the store's own offsets say where to begin, and events and
offsets are written in one transaction, so being killed at any moment changes nothing. Does not know
how it is run or how its figures are shown.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.errors import BrokerUnavailable
from streaming.histories.store import ApplyReport, HistoryStore
from streaming.messages.topics import INTERACTIONS

logger = logging.getLogger(__name__)

_MAX_BATCH_EVENTS = 1_000
_POLL_S = 1.0
# The lag of a stream that brings nothing is asked for less often: each question wakes the broker too.
_LAG_INTERVAL_S, _IDLE_LAG_INTERVAL_S = 5.0, 10.0
GROUP_ID = "headrace-projector"


@dataclass(frozen=True, kw_only=True)
class ProjectionReport:
    """One turn of the loop.

    `event_to_history_s` is, per event, the time from being sent to being readable; `lag` the records
    not read yet by "topic/partition", None in the turns in which it was not asked for; `hidden` those of them
    that an open transaction hides.
    """

    num_events: int = 0
    num_duplicates: int = 0
    event_to_history_s: list[float] = field(default_factory=list)
    lag: dict[str, int] | None = None
    hidden: dict[str, int] = field(default_factory=dict)


def project(
    bootstrap: str,
    history: HistoryStore,
    dead_letters: DeadLetters,
    *,
    stop: threading.Event,
    on_batch: Callable[[ProjectionReport], None],
) -> None:
    """Runs until `stop` is set; `on_batch` is called after each batch and whenever the lag was asked for.

    Waits for a broker that is away. Raises what the history store raises (a full disk, for one).
    """
    next_lag_s, stored = 0.0, history.offsets()
    asked_at: dict[str, int] = {}
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets=stored, dead_letters=dead_letters, stage="projector"
    ) as consumer:
        while not stop.is_set():
            records = consumer.poll(_MAX_BATCH_EVENTS, _POLL_S)
            history.rewind(consumer.take_rewound())
            applied = ApplyReport()
            if records or consumer.offsets != stored:
                stored = consumer.offsets
                applied = history.apply(records, stored)
            now_ms = time.time() * 1000
            lag = None
            if time.monotonic() >= next_lag_s:
                lag = _lag(consumer)
                is_idle = stored == asked_at and lag is not None and not any(lag.values())
                asked_at = stored
                next_lag_s = time.monotonic() + (_IDLE_LAG_INTERVAL_S if is_idle else _LAG_INTERVAL_S)
            if records or lag is not None:
                on_batch(
                    ProjectionReport(
                        num_events=applied.num_applied,
                        num_duplicates=applied.num_duplicates,
                        event_to_history_s=[
                            max(0.0, now_ms - record.timestamp_ms) / 1000.0 for record in records
                        ],
                        lag=lag,
                        hidden=consumer.hidden(),
                    )
                )


def _lag(consumer: PartitionConsumer) -> dict[str, int] | None:
    try:
        lag = consumer.lag()
    except BrokerUnavailable as error:
        logger.warning("lag_unknown", extra={"error": str(error)})
        return None
    consumer.commit_for_display(GROUP_ID)
    return lag
