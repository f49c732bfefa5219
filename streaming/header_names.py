"""Header names of any bytes: both clients decode them as UTF-8 and fail on others, before we see the record.

Kafka's protocol says UTF-8, and no broker checks it: librdkafka writes what it is given. A client that fails
inside a batch never gets past it, not even after a restart. So a name that is not UTF-8 is read with its
bytes escaped.
"""

from collections.abc import Iterator
from typing import Any

import aiokafka.consumer.fetcher
import aiokafka.record.memory_records
import kafka.record.default_records
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


class _Name(bytearray):
    """A slice of a record; as text, what is no UTF-8 is escaped."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self).decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    """A batch whose slices decode whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Name(found) if isinstance(at, slice) else found


class _Records:
    """aiokafka's records of one fetch, with the bytes they are read from."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._records = _MemoryRecords(data)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        return self._records.next_batch()

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())


_MemoryRecords: Any = aiokafka.consumer.fetcher.MemoryRecords


def read_any_header_name() -> None:
    """From now on, every consumer of this process (faust's too) reads such records. May be called again.

    kafka-python's batches, and aiokafka's in Python, read a record again leniently when its names are no
    UTF-8. aiokafka's compiled ones cannot: the rest of such a fetch is read by those in Python.
    """
    if aiokafka.consumer.fetcher.MemoryRecords is _Records:
        return
    for batch in (kafka.record.default_records.DefaultRecordBatch, _DefaultRecordBatchPy):
        batch._read_msg = _leniently(batch._read_msg)
    # the records in Python would make compiled batches, too
    aiokafka.record.memory_records.DefaultRecordBatch = _DefaultRecordBatchPy
    fetched = aiokafka.consumer.fetcher.PartitionRecords
    fetched._unpack_records = _going_on(fetched._unpack_records)
    aiokafka.consumer.fetcher.MemoryRecords = _Records


def _leniently(read: Any) -> Any:
    def read_message(self: Any) -> Any:
        try:
            return read(self)
        except UnicodeDecodeError:
            strict, self._buffer = self._buffer, _Buffer(self._buffer)
            try:
                return read(self)
            finally:
                self._buffer = strict

    return read_message


def _going_on(unpack: Any) -> Any:
    def records(self: Any) -> Iterator[Any]:
        try:
            yield from unpack(self)
        except (UnicodeDecodeError, CorruptRecordException):
            # from the beginning of the fetch, without what it gave already (whole batches move
            # `next_fetch_offset` back); what is corrupt in another way fails again
            reached = self.next_fetch_offset
            self._records = _MemoryRecordsPy(self._records.data)
            yield from (record for record in unpack(self) if record.offset >= reached)

    return records
