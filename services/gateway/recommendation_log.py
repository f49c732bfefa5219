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
from streaming.errors import BrokerUnavailable
from streaming.messages.codec import MAX_VALUE_BYTES
from streaming.messages.topics import RECOMMENDATIONS

_MAX_QUEUED = 10_000
_MAX_BATCH = 500
_BACK_OFF_S = 1.0
# How long the first record of a batch waits for others: one write for each answer cost the broker and this
# process more than a millisecond of CPU each.
_LINGER_S = 0.5

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
        """Writes what is queued, in order; what cannot be written is dropped and counted.

        That is a batch that the broker refuses, and a record that is too large for any, alone.
        """
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
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
        if not self._queue:
            self._is_filled.clear()
        # the producer sends none of a batch that one record is too large for
        batch = [record for record in taken if record.ByteSize() <= MAX_VALUE_BYTES]
        if len(batch) < len(taken):
            _drop(len(taken) - len(batch), f"larger than {MAX_VALUE_BYTES} bytes")
        try:
            await self._producer.send_many(RECOMMENDATIONS, [(record.request_id, record) for record in batch])
        except (BrokerUnavailable, OSError) as error:
            _drop(len(batch), str(error))
            return False
        return True


def _drop(num_records: int, why: str) -> None:
    RECOMMENDATION_LOGS_DROPPED.inc(num_records)
    log.warning("recommendation_logs_dropped", num_records=num_records, error=why)
