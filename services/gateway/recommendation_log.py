"""Which items were shown to whom, written to the topic `recommendations` behind the answers.

No answer waits for it: the queue is bounded, and what does not fit, or the broker does not take, is dropped
and counted. The log is meant for off-policy evaluation, which tolerates gaps; nothing reads it yet.
"""

import asyncio
from collections import deque

import structlog

from protos.headrace.v1.recommend_pb2 import RecommendationLog
from services.metrics import RECOMMENDATION_LOGS_DROPPED
from streaming.clients.producer import AsyncProducer
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.messages.topics import RECOMMENDATIONS

_MAX_QUEUED = 10_000
_MAX_BATCH = 500
_BACK_OFF_S = 1.0
# How long the first record of a batch waits for others: one write for each answer cost the broker and this
# process more than a millisecond of CPU each.
_LINGER_S = 0.1

log = structlog.get_logger(__name__)


class RecommendationLogWriter:
    """`put` at any time; `run` writes until it is cancelled."""

    def __init__(
        self, producer: AsyncProducer, *, max_queued: int = _MAX_QUEUED, linger_s: float = _LINGER_S
    ) -> None:
        self._producer = producer
        self._linger_s = linger_s
        self._max_queued = max_queued
        self._queue: deque[RecommendationLog] = deque()
        self._is_filled = asyncio.Event()

    def put(self, record: RecommendationLog) -> None:
        """Takes one record without waiting; drops and counts it if the queue is full."""
        if len(self._queue) >= self._max_queued:
            RECOMMENDATION_LOGS_DROPPED.inc()
            return
        self._queue.append(record)
        self._is_filled.set()

    async def run(self) -> None:
        """Writes what is queued, in order; a batch that the broker refuses is dropped and counted."""
        while True:
            await self._is_filled.wait()
            await asyncio.sleep(self._linger_s)
            if not await self._write():
                await asyncio.sleep(_BACK_OFF_S)

    async def flush(self) -> None:
        """Writes what is left once `run` has ended and no more answers come."""
        while self._queue:
            await self._write()

    async def _write(self) -> bool:
        """Writes a batch of what is queued; says whether the broker took it."""
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
        if not self._queue:
            self._is_filled.clear()
        try:
            await self._producer.send_many(RECOMMENDATIONS, [(record.request_id, record) for record in batch])
        except (BrokerUnavailable, MalformedEvent, OSError) as error:
            RECOMMENDATION_LOGS_DROPPED.inc(len(batch))
            log.warning("recommendation_logs_dropped", num_records=len(batch), error=str(error))
            return False
        return True
