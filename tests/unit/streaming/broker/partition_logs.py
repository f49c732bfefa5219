"""Batches as producers send them, and what can be read of a log."""

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from streaming.broker.batches import read_batches
from streaming.broker.log import PartitionLog

PRODUCER = 7


def make_batch(
    values: list[bytes],
    *,
    keys: list[bytes | None] | None = None,
    timestamp_ms: int = 1_000,
    sequence: int = -1,
    epoch: int = 0,
    codec: int = 0,
) -> bytes:
    """A batch as a producer sends it; with a sequence number, an idempotent one."""
    producer_id = PRODUCER if sequence >= 0 else -1
    builder = DefaultRecordBatchBuilder(2, codec, 0, producer_id, epoch, sequence, 1 << 20)
    for i, value in enumerate(values):
        builder.append(i, timestamp_ms, keys[i] if keys else None, value, [])
    return bytes(builder.build())


def fill(log: PartitionLog, batches: list[bytes]) -> None:
    for batch in batches:
        log.append(batch)
    log.sync()
    log.mark_stable(log.end_offset)


def values(log: PartitionLog, offset: int = 0) -> list[tuple[int, bytes]]:
    """(offset, value) of every record that can be read."""
    found: list[tuple[int, bytes]] = []
    while data := log.read(offset, 300):
        for position, batch in read_batches(data):
            records = DefaultRecordBatch(data[position : position + batch.size])
            found += [(r.offset, bytes(r.value or b"")) for r in records if r.offset >= offset]
            offset = batch.next_offset
    return found
