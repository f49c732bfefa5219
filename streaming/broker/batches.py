"""Kafka's record batches as bytes: their headers, their checksum, and nothing else.

Source: https://kafka.apache.org/documentation/#recordbatch (magic 2).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatch

_HEADER = struct.Struct(">qiibIhiqqqhii")
_BASE_OFFSET = struct.Struct(">q")
_BEFORE_LENGTH = 12  # bytes of the base offset and the length itself, which the length does not count
_MAGIC = 2
_TRANSACTIONAL, _CONTROL = 0x10, 0x20

HEADER_BYTES = _HEADER.size


class BadBatch(ValueError):
    """Bytes that are no record batch which this broker can keep."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The header of one batch; `size` in bytes with the header, `max_timestamp_ms` in ms since 1970."""

    size: int
    base_offset: int
    num_records: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int

    @property
    def next_offset(self) -> int:
        """The offset after its last record."""
        return self.base_offset + self.num_records

    @classmethod
    def read(cls, data: bytes | memoryview, position: int) -> Self:
        """The header that begins at `position` of `data`; raises BadBatch where none is whole."""
        try:
            fields = _HEADER.unpack_from(data, position)
        except struct.error:
            raise BadBatch("the bytes end within a batch's header") from None
        base_offset, length, _, magic, _, attributes, last_delta, _, max_time, *producer, count = fields
        if magic != _MAGIC:
            raise BadBatch(f"records of format {magic} are not kept, only of format {_MAGIC}")
        if length < HEADER_BYTES - _BEFORE_LENGTH or not 0 <= count <= last_delta + 1:
            raise BadBatch("a batch's header contradicts itself")
        if attributes & (_TRANSACTIONAL | _CONTROL):
            raise BadBatch("this broker has no transactions")
        return cls(_BEFORE_LENGTH + length, base_offset, last_delta + 1, max_time, *producer)


def read_batches(data: bytes | memoryview, position: int = 0) -> Iterator[tuple[int, Batch]]:
    """Position and header of each batch up to the end of `data`; BadBatch where the next is not whole."""
    while position < len(data):
        batch = Batch.read(data, position)
        if position + batch.size > len(data):
            raise BadBatch("the bytes end within a batch")
        yield position, batch
        position += batch.size


def is_sound(data: bytes) -> bool:
    """Whether the checksum of the one batch that `data` is holds."""
    return bool(DefaultRecordBatch(data).validate_crc())


def with_base_offset(data: bytes, base_offset: int) -> bytes:
    """One batch with its first offset set, which its checksum does not cover."""
    return _BASE_OFFSET.pack(base_offset) + data[_BASE_OFFSET.size :]


def read_records(data: bytes) -> Iterator[DefaultRecord]:
    """The records of one batch; raises whatever its codec raises where they cannot be read."""
    return iter(DefaultRecordBatch(data))
