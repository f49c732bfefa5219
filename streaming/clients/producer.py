"""Writes messages to topics: idempotent, acknowledged by all replicas, keyed.

`AsyncProducer` (aiokafka) is for services, `Producer` (kafka-python) for processes without an event
loop. Both connect at the first send and give BrokerUnavailable when a record was not confirmed; a
caller may then send it again: readers deduplicate. Neither knows what the messages mean.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import kafka.errors
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownError
from aiokafka.partitioner import DefaultPartitioner
from google.protobuf.message import Message

from streaming.clients.factory import make_producer
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.messages.codec import MAX_VALUE_BYTES, encode
from streaming.messages.records import Headers, position_of

logger = logging.getLogger(__name__)

_LINGER_MS = 2
_BATCH_BYTES = 131_072
# From so many on, records are put into batches here: aiokafka spends 15 us on each one's way into a batch.
_MIN_BULK = 16


class AsyncProducer:
    """`async with AsyncProducer(bootstrap) as producer: await producer.send(topic, key, message)`.

    `timeout_s` bounds the wait for one confirmation. What a timed-out call left in the buffer is still
    delivered when the broker comes back. Safe for many tasks of one event loop.
    """

    def __init__(self, bootstrap: str, *, timeout_s: float = 30.0) -> None:
        self._bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._client: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def send(self, topic: str, key: str, message: Message) -> tuple[str, int]:
        """Returns when the broker has the record, and where: "topic/partition" and offset.

        Raises BrokerUnavailable if it did not confirm it, MalformedEvent if the message is too large.
        """
        [placed] = await self._deliver(topic, [(key, message)])
        return position_of(topic, placed.partition), placed.offset

    async def send_many(self, topic: str, messages: Iterable[tuple[str, Message]]) -> None:
        """Sends (key, message) pairs pipelined, in order per key; returns when the broker has them all.

        Raises BrokerUnavailable if any was not confirmed (which of them were is then unknown),
        MalformedEvent if one is too large (then none is sent).
        """
        await self._deliver(topic, messages)

    async def _deliver(self, topic: str, messages: Iterable[tuple[str, Message]]) -> list[Any]:
        """What the broker said of each batch (or, of few records, of each record)."""
        loop = asyncio.get_running_loop()
        client = None
        confirmations: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                client = await self._connected()
                records = [(key.encode(), _checked(topic, key, message)) for key, message in messages]
                if len(records) < _MIN_BULK:
                    for key_bytes, value in records:
                        confirmations.append(await client.send(topic, value, key=key_bytes))
                        deadline.reschedule(loop.time() + self._timeout_s)
                else:
                    confirmations += await _send_in_bulk(client, topic, records)
                    deadline.reschedule(loop.time() + self._timeout_s)
                return await asyncio.gather(*confirmations)
        except (TimeoutError, KafkaTimeoutError) as error:
            raise BrokerUnavailable(f"{topic}: not confirmed within {self._timeout_s} s") from error
        except KafkaError as error:
            # an idempotent producer that lost a batch refuses everything after it: begin a new one
            if client is not None:
                await self._drop(client)
            is_disk = isinstance(error, UnknownError)
            cause = "the broker could not write it (is its disk full?)" if is_disk else repr(error)
            raise BrokerUnavailable(f"{topic} at {self._bootstrap}: {cause}") from error
        finally:
            for confirmation in confirmations:
                confirmation.add_done_callback(_mark_retrieved)

    async def close(self) -> None:
        """Sends what is buffered, for at most `timeout_s`, and disconnects."""
        if self._client is not None:
            await self._drop(self._client)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._client is None:
                client = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=_LINGER_MS,
                    max_batch_size=_BATCH_BYTES,
                    request_timeout_ms=int(self._timeout_s * 1000),
                )
                try:
                    await client.start()
                except BaseException:
                    await client.stop()
                    raise
                self._client = client
            return self._client

    async def _drop(self, client: AIOKafkaProducer) -> None:
        if self._client is client:
            self._client = None
        try:
            async with asyncio.timeout(self._timeout_s):
                await client.stop()
        except TimeoutError:
            logger.warning("producer_closed_with_undelivered_records")
            await client.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Producer:
    """`with Producer(bootstrap) as producer: producer.send(topic, key, message)`; `flush` confirms.

    `timeout_s` bounds the delivery of one record. Safe for many threads. Connects when made; raises
    BrokerUnavailable if it cannot.
    """

    def __init__(self, bootstrap: str, *, timeout_s: float = 30.0) -> None:
        timeout_ms = int(timeout_s * 1000)
        self._timeout_s = timeout_s
        self._failures: list[BaseException] = []
        self._failures_lock = threading.Lock()
        self._client = make_producer(
            bootstrap,
            timeout_s,
            linger_ms=_LINGER_MS,
            batch_size=_BATCH_BYTES,
            delivery_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms // 2,
            max_block_ms=timeout_ms,
        )

    def send(self, topic: str, key: str, message: Message) -> None:
        """Hands one message over; the next `flush` tells whether it arrived.

        Raises BrokerUnavailable if the topic's partitions cannot be found out in time, MalformedEvent
        if the message is too large.
        """
        self.send_raw(topic, key.encode(), _checked(topic, key, message))

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """As `send`, for bytes that are passed on as they are; a record of nothing gets an empty value."""
        if key is None and value is None:
            value = b""  # the client refuses what the protocol allows
        try:
            future = self._client.send(topic, value=value, key=key, headers=list(headers))
        except kafka.errors.KafkaError as error:
            raise BrokerUnavailable(f"{topic}: {error}") from error
        future.add_errback(self._note_failure)

    def flush(self) -> None:
        """Returns when the broker has everything sent so far.

        Raises BrokerUnavailable if some of it did not arrive since the last flush.
        """
        try:
            self._client.flush(timeout=self._timeout_s)
        except kafka.errors.KafkaError as error:
            raise BrokerUnavailable(f"records not confirmed: {error}") from error
        with self._failures_lock:
            failures, self._failures = self._failures, []
        if failures:
            raise BrokerUnavailable(f"{len(failures)} records not confirmed: {failures[0]}") from failures[0]

    def close(self) -> None:
        """Sends what is buffered, for at most `timeout_s`, and disconnects."""
        self._client.close(timeout=self._timeout_s)

    def _note_failure(self, error: BaseException) -> None:
        with self._failures_lock:
            self._failures.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _send_in_bulk(
    client: AIOKafkaProducer, topic: str, records: Sequence[tuple[bytes, bytes]]
) -> "list[asyncio.Future[Any]]":
    """Hands (key, value) pairs over, in order per key; one confirmation for each batch.

    Batches wait for nobody: each partition's next one is handed over when the one before has left.
    """
    partitions = sorted(await client.partitions_for(topic))
    choose = DefaultPartitioner()
    of_partition: dict[int, list[tuple[bytes, bytes]]] = {}
    for record in records:
        of_partition.setdefault(choose(record[0], partitions, partitions), []).append(record)

    async def hand_over(partition: int) -> "list[asyncio.Future[Any]]":
        confirmations = []
        batch = client.create_batch()
        for key, value in of_partition[partition]:
            if batch.append(timestamp=None, key=key, value=value) is None:
                confirmations.append(await client.send_batch(batch, topic, partition=partition))
                batch = client.create_batch()
                batch.append(timestamp=None, key=key, value=value)
        batch.close()
        confirmations.append(await client.send_batch(batch, topic, partition=partition))
        return confirmations

    return [one for many in await asyncio.gather(*map(hand_over, of_partition)) for one in many]


def _checked(topic: str, key: str, message: Message) -> bytes:
    value = encode(message)
    if len(value) > MAX_VALUE_BYTES:
        raise MalformedEvent(
            "too_large", f"{topic}: {key!r} has {len(value):,} bytes; at most {MAX_VALUE_BYTES:,} are sent"
        )
    return value


def _mark_retrieved(confirmation: "asyncio.Future[Any]") -> None:
    """Keeps asyncio from reporting a failure that the caller was told of through another record."""
    if not confirmation.cancelled():
        confirmation.exception()
