"""Requests about records: produce, fetch, offsets by time, deletion, producer ids."""

import asyncio
import logging
import time
from typing import Any

from kafka.errors import (
    CorruptRecordError,
    InvalidProducerEpochError,
    InvalidRecordError,
    InvalidRequestError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumberError,
    TransactionalIdAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.admin import DeleteRecordsRequest, DeleteRecordsResponse
from kafka.protocol.consumer import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
)
from kafka.protocol.producer import (
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProduceRequest,
    ProduceResponse,
)

from streaming.broker.batches import BadBatch
from streaming.broker.log import Fenced, OutOfOrder, PartitionLog
from streaming.broker.node import Node

logger = logging.getLogger(__name__)

_LATEST, _EARLIEST = -1, -2
_MAX_WAIT_S = 60.0
# Records that follow each other faster than this come to a reader that waits in one answer for so long:
# otherwise, at 50 events a second, each of a stack's readers would be woken for every single one, which costs
# more than the work itself. One that comes after a pause is answered at once.
_GATHER_S = 0.25

_TopicProduced = ProduceResponse.TopicProduceResponse
_PartitionProduced = _TopicProduced.PartitionProduceResponse
_TopicFetched = FetchResponse.FetchableTopicResponse
_PartitionFetched = _TopicFetched.PartitionData
_TopicOffsets = ListOffsetsResponse.ListOffsetsTopicResponse
_PartitionOffset = _TopicOffsets.ListOffsetsPartitionResponse
_TopicDeleted = DeleteRecordsResponse.DeleteRecordsTopicResult
_PartitionDeleted = _TopicDeleted.DeleteRecordsPartitionResult
_TopicEnds = OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult
_PartitionEnd = _TopicEnds.EpochEndOffset


class RecordHandlers:
    """Answers the requests about records of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topics = node.topics

    async def produce(self, request: ProduceRequest, client_id: str) -> ProduceResponse:
        """Appends; answers when it is on disk. Appends in the order in which the calls begin."""
        appended: dict[PartitionLog, list[Any]] = {}
        topics = []
        for topic in request.topic_data:
            parts = []
            for part in topic.partition_data:
                log = self._topics.log(topic.name, part.index)
                answer = self._append(topic.name, log, part.index, part.records)
                if log is not None and not answer.error_code:
                    appended.setdefault(log, []).append(answer)
                parts.append(answer)
            topics.append(_TopicProduced(name=topic.name, partition_responses=parts))
        if appended:
            try:
                await self._node.flusher.flush(appended)
            except OSError as error:
                for answers in appended.values():
                    for answer in answers:
                        answer.error_code, answer.error_message = UnknownError.errno, str(error)
        return ProduceResponse(responses=topics)

    def _append(self, topic: str, log: PartitionLog | None, index: int, records: object) -> Any:
        answer = _PartitionProduced(
            index=index,
            error_code=0,
            base_offset=-1,
            log_append_time_ms=-1,
            log_start_offset=-1,
            record_errors=[],
            error_message=None,
        )
        try:
            if log is None:
                answer.error_code = UnknownTopicOrPartitionError.errno
                return answer
            found = self._topics.get(topic)
            data = bytes(records) if isinstance(records, bytes | memoryview) else b""
            if found is not None and len(data) > int(found.config("max.message.bytes")):
                answer.error_code = MessageSizeTooLargeError.errno
                return answer
            answer.base_offset, answer.log_start_offset = log.append(data), log.start_offset
        except BadBatch as error:
            is_corrupt = "checksum" in str(error)
            answer.error_code = (CorruptRecordError if is_corrupt else InvalidRecordError).errno
            answer.error_message = str(error)
        except OutOfOrder:
            answer.error_code = OutOfOrderSequenceNumberError.errno
        except Fenced:
            answer.error_code = InvalidProducerEpochError.errno
        except OSError as error:
            # an error that no client retries by itself: what was refused must not be written later
            answer.error_code, answer.error_message = UnknownError.errno, str(error)
            logger.error("not_written topic=%s partition=%d error=%s", topic, index, error)
        return answer

    async def fetch(self, request: FetchRequest, client_id: str) -> FetchResponse:
        """Answers once there are `min_bytes` to read, or something to say, or after `max_wait_ms`."""
        deadline_s = time.monotonic() + min(request.max_wait_ms / 1000, _MAX_WAIT_S)
        logs = [
            log
            for topic in request.topics
            for part in topic.partitions
            if (log := self._topics.log(topic.topic, part.partition)) is not None
        ]
        while True:
            topics, num_bytes, is_urgent = self._read(request)
            patience_s = deadline_s - time.monotonic()
            if num_bytes >= request.min_bytes or is_urgent or patience_s <= 0:
                return FetchResponse(error_code=0, session_id=0, responses=topics)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            for log in logs:
                log.watch(waiter)
            try:
                await asyncio.wait([waiter], timeout=patience_s)
            finally:
                for log in logs:
                    log.unwatch(waiter)
            if waiter.done() and any(log.is_steady(_GATHER_S) for log in logs):
                await asyncio.sleep(min(_GATHER_S, max(0.0, deadline_s - time.monotonic())))

    def _read(self, request: FetchRequest) -> tuple[list[Any], int, bool]:
        """The answer's topics, their number of bytes, and whether an error must be told at once."""
        topics, num_bytes, is_urgent = [], 0, False
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                log = self._topics.log(topic.topic, part.partition)
                answer = _PartitionFetched(
                    partition_index=part.partition,
                    error_code=0,
                    high_watermark=-1,
                    last_stable_offset=-1,
                    log_start_offset=-1,
                    aborted_transactions=[],
                    preferred_read_replica=-1,
                    records=b"",
                )
                parts.append(answer)
                if log is None:
                    answer.error_code, is_urgent = UnknownTopicOrPartitionError.errno, True
                    continue
                answer.high_watermark = answer.last_stable_offset = log.stable_offset
                answer.log_start_offset = log.start_offset
                if not log.start_offset <= part.fetch_offset <= log.end_offset:
                    answer.error_code, is_urgent = OffsetOutOfRangeError.errno, True
                    continue
                left = min(part.partition_max_bytes, request.max_bytes - num_bytes)
                if left > 0 or not num_bytes:  # whoever asks for less than one batch gets one
                    answer.records = log.read(part.fetch_offset, left)
                    num_bytes += len(answer.records)
            topics.append(_TopicFetched(topic=topic.topic, partitions=parts))
        return topics, num_bytes, is_urgent

    async def list_offsets(self, request: ListOffsetsRequest, client_id: str) -> ListOffsetsResponse:
        """The first or next offset, or the first of a time."""
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                answer = _PartitionOffset(
                    partition_index=part.partition_index,
                    error_code=0,
                    timestamp=-1,
                    offset=-1,
                    leader_epoch=0,
                )
                log = self._topics.log(topic.name, part.partition_index)
                if log is None:
                    answer.error_code = UnknownTopicOrPartitionError.errno
                elif part.timestamp == _LATEST:
                    answer.offset = log.stable_offset
                elif part.timestamp == _EARLIEST:
                    answer.offset = log.start_offset
                elif part.timestamp < 0:
                    answer.error_code = InvalidRequestError.errno
                else:
                    found = log.offset_at(part.timestamp)
                    if found is not None:
                        answer.offset, answer.timestamp = found
                parts.append(answer)
            topics.append(_TopicOffsets(name=topic.name, partitions=parts))
        return ListOffsetsResponse(topics=topics)

    async def epoch_ends(
        self, request: OffsetForLeaderEpochRequest, client_id: str
    ) -> OffsetForLeaderEpochResponse:
        """There is one epoch, 0, and it ends where the log does."""
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                log = self._topics.log(topic.topic, part.partition)
                parts.append(
                    _PartitionEnd(
                        error_code=0 if log is not None else UnknownTopicOrPartitionError.errno,
                        partition=part.partition,
                        leader_epoch=0,
                        end_offset=log.stable_offset if log is not None else -1,
                    )
                )
            topics.append(_TopicEnds(topic=topic.topic, partitions=parts))
        return OffsetForLeaderEpochResponse(topics=topics)

    async def delete_records(self, request: DeleteRecordsRequest, client_id: str) -> DeleteRecordsResponse:
        """Moves the beginning of logs."""
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                answer = _PartitionDeleted(
                    partition_index=part.partition_index, low_watermark=-1, error_code=0
                )
                log = self._topics.log(topic.name, part.partition_index)
                offset = part.offset if part.offset >= 0 or log is None else log.stable_offset
                if log is None:
                    answer.error_code = UnknownTopicOrPartitionError.errno
                elif offset > log.stable_offset or part.offset < _LATEST:
                    answer.error_code = OffsetOutOfRangeError.errno
                else:
                    log.delete_before(offset)
                    answer.low_watermark = log.start_offset
                parts.append(answer)
            topics.append(_TopicDeleted(name=topic.name, partitions=parts))
        return DeleteRecordsResponse(topics=topics)

    async def new_producer(self, request: InitProducerIdRequest, client_id: str) -> InitProducerIdResponse:
        """An id for a producer that sends each record once; refused to those that want transactions."""
        if request.transactional_id is not None:
            code = TransactionalIdAuthorizationFailedError.errno
            return InitProducerIdResponse(error_code=code, producer_id=-1, producer_epoch=-1)
        producer_id = self._topics.new_producer_id()
        return InitProducerIdResponse(error_code=0, producer_id=producer_id, producer_epoch=0)
