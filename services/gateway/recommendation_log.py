"""Which items were shown to whom, written to the topic `recommendations` behind the answers.

No answer waits for it: the queue is bounded, and what does not fit, or the broker does not take, is
dropped and counted. The log feeds off-policy evaluation, which bears gaps.
"""

import asyncio

import structlog

from protos.headrace.v1.recommend_pb2 import RecommendationLog
from services.metrics import RECOMMENDATION_LOGS_DROPPED
from streaming.errors import BrokerUnavailable
from streaming.producer import AsyncProducer
from streaming.topics import RECOMMENDATIONS

_MAX_QUEUED = 10_000
_MAX_BATCH = 500
_BACK_OFF_S = 1.0

_log = structlog.get_logger(__name__)


class RecommendationLogWriter:
    """`put` at any time; `run` writes until it is cancelled."""

    def __init__(self, producer: AsyncProducer, *, max_queued: int = _MAX_QUEUED) -> None:
        self._producer = producer
        self._queue: asyncio.Queue[RecommendationLog] = asyncio.Queue(maxsize=max_queued)

    def put(self, record: RecommendationLog) -> None:
        """Takes one record without waiting; drops and counts it if the queue is full."""
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            RECOMMENDATION_LOGS_DROPPED.inc()

    async def run(self) -> None:
        """Writes what is queued, in order; a batch that the broker refuses is dropped and counted."""
        while True:
            if not await self._write([await self._queue.get()]):
                await asyncio.sleep(_BACK_OFF_S)

    async def flush(self) -> None:
        """Writes what is left when no more answers come and `run` has ended."""
        while not self._queue.empty():
            await self._write([])

    async def _write(self, batch: list[RecommendationLog]) -> bool:
        """Writes `batch` and what is queued behind it; says whether the broker took it."""
        while len(batch) < _MAX_BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        try:
            await self._producer.send_many(RECOMMENDATIONS, [(record.request_id, record) for record in batch])
        except BrokerUnavailable as error:
            RECOMMENDATION_LOGS_DROPPED.inc(len(batch))
            _log.warning("recommendation logs dropped", num_records=len(batch), reason=str(error))
            return False
        return True
