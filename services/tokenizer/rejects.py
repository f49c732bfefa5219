"""Records of `items` that cannot be used, on their way to the dead-letter topic.

The tokenizer reads its topic from the beginning at every start, so what an earlier life has rejected
already is remembered by its place and not rejected again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from aiokafka import ConsumerRecord

from services.metrics import DLQ_RECORDS
from streaming.clients.dead_letter import DeadLetters, list_dead_letters
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.messages.codec import RawRecord, encode, header_list
from streaming.messages.records import Headers, Origin, Record
from streaming.messages.topics import ITEMS

_STAGE = "tokenizer"
_RETRY_S = 1.0

log = structlog.get_logger()

T = TypeVar("T")


@dataclass
class _RawRecord:
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


class Rejects:
    """`put` never blocks; `run` sends, and waits for the broker as long as it takes."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._letters = DeadLetters(bootstrap, stage=_STAGE)
        self._waiting: asyncio.Queue[tuple[RawRecord, str, str]] = asyncio.Queue()

    def put(self, record: Record, reason: str, text: str) -> None:
        """Rejects a valid record that cannot be tokenized."""
        raw = _RawRecord(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key.encode(),
            value=encode(record.message),
            headers=[] if record.origin is None else [record.origin.header()],
            timestamp=record.timestamp_ms,
        )
        self._waiting.put_nowait((raw, reason, text))

    def put_malformed(self, raw: ConsumerRecord, error: MalformedEvent) -> None:
        """Rejects a record that could not be read."""
        self._waiting.put_nowait((raw, error.reason, error.text))

    async def run(self) -> None:
        """Sends what was put, until cancelled."""
        sent: set[Origin] | None = None
        while True:
            raw, reason, text = await self._waiting.get()
            if sent is None:
                sent = await _patiently(self._sent_before)
            origin = Origin.of(raw.partition, raw.offset, header_list(raw.headers))
            if origin not in sent:
                await _patiently(partial(self._send, raw, reason, text))
                sent.add(origin)
                DLQ_RECORDS.labels(ITEMS, _STAGE, reason).inc()

    def close(self) -> None:
        """Disconnects."""
        self._letters.close()

    def _sent_before(self) -> set[Origin]:
        return {
            Origin(partition=letter.partition, offset=letter.offset, num_redriven=attempt)
            for letter in list_dead_letters(self._bootstrap, ITEMS)
            for attempt in range(letter.num_failed)
            if _STAGE in letter.stages
        }

    def _send(self, raw: RawRecord, reason: str, text: str) -> None:
        self._letters.reject(raw, reason=reason, exception=text)
        self._letters.flush()


async def _patiently(work: Callable[[], T]) -> T:
    """The result of blocking work, tried until the broker answers."""
    while True:
        try:
            return await asyncio.to_thread(work)
        except BrokerUnavailable as error:
            log.warning("dead_letters_wait_for_the_broker", error=str(error))
            await asyncio.sleep(_RETRY_S)
