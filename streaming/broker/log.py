"""The log of one partition: segments on disk, what producers sent last, and who waits for more.

Knows nothing of topics, groups and the network.
"""

import asyncio
import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from streaming.broker.batches import BadBatch, Batch, is_sound, read_records, with_base_offset
from streaming.broker.segment import Segment, replace_file

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 << 20
_BATCHES_REMEMBERED = 5  # of each producer, as many as it may have in flight
_MAX_PRODUCERS = 1_000
_STEP_BYTES = 128 << 10
_START_FILE = "start-offset"


class OutOfOrder(Exception):
    """A producer's batch is not the next one of that producer."""


class Fenced(Exception):
    """A producer's batch comes from before a newer start of the same producer."""


@dataclass
class _Producer:
    """What one producer sent: (first sequence number, number of records, offset) of its last batches."""

    epoch: int
    last: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=_BATCHES_REMEMBERED))


class PartitionLog:
    """Records from `start_offset` to `end_offset`; those before `stable_offset` are on disk and can be read.

    Opening it reads what is there; of a file that a crash left torn, the whole batches are kept.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._producers: dict[int, _Producer] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._compacted_bytes = 0
        self._is_closed = self._is_deleted = False
        folder.mkdir(parents=True, exist_ok=True)
        self._segments = [Segment(folder, offset) for offset in self._base_offsets()]
        for segment in self._segments:
            found = segment.path.stat().st_size
            for batch in segment.recover(verify=segment is self._segments[-1]):
                self._remember(batch)
            if found != segment.size:
                logger.warning("log_cut path=%s from_bytes=%d to_bytes=%d", segment.path, found, segment.size)
        start_file = folder / _START_FILE
        text = start_file.read_text(errors="replace").strip() if start_file.exists() else "0"
        if not text.isdecimal():
            raise OSError(
                f"{start_file} is damaged: it holds the first offset; delete it to read all records"
            )
        start = int(text)
        self.start_offset = min(max(start, self._segments[0].base_offset), self.end_offset)
        self.stable_offset = self.end_offset
        self._pause_s, self._moved_s = float("inf"), -float("inf")

    def _base_offsets(self) -> list[int]:
        stems = (path.stem for path in self.folder.glob("*.log"))
        return sorted(int(stem) for stem in stems if len(stem) == 20 and stem.isdecimal()) or [0]

    @property
    def end_offset(self) -> int:
        """The offset that the next record gets."""
        return self._segments[-1].end_offset

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    def append(self, data: bytes) -> int:
        """Writes the one batch of a produce request; returns the offset of its first record.

        What its producer sent already is not written again. Raises BadBatch, OutOfOrder, Fenced, or OSError:
        then nothing of it is kept.
        """
        batch = Batch.read(data, 0)
        if batch.size != len(data):
            raise BadBatch("a produce request holds exactly one batch for a partition")
        if not is_sound(data):
            raise BadBatch("the batch's checksum does not hold")
        known = self._known_offset(batch)
        if known is not None:
            return known
        offset = self.end_offset
        batch = replace(batch, base_offset=offset)
        self._writable(len(data)).append(with_base_offset(data, offset), batch)
        self._remember(batch)
        return offset

    def _writable(self, num_bytes: int) -> Segment:
        last = self._segments[-1]
        if last.size and last.size + num_bytes > self._segment_bytes:
            last.sync()
            self._segments.append(Segment(self.folder, last.end_offset))
        return self._segments[-1]

    def _known_offset(self, batch: Batch) -> int | None:
        """Where a batch lies that this producer sends again; None for a new one."""
        producer = self._producers.get(batch.producer_id)
        if batch.producer_id < 0 or producer is None or batch.producer_epoch > producer.epoch:
            return None
        if batch.producer_epoch < producer.epoch:
            raise Fenced
        for sequence, num_records, offset in producer.last:
            if (sequence, num_records) == (batch.base_sequence, batch.num_records):
                return offset
        sequence, num_records, _ = producer.last[-1]
        if batch.base_sequence != (sequence + num_records) % (1 << 31):
            raise OutOfOrder
        return None

    def _remember(self, batch: Batch) -> None:
        if batch.producer_id < 0:
            return
        producer = self._producers.pop(batch.producer_id, None)
        if producer is None or producer.epoch != batch.producer_epoch:
            producer = _Producer(batch.producer_epoch)
        producer.last.append((batch.base_sequence, batch.num_records, batch.base_offset))
        self._producers[batch.producer_id] = producer
        if len(self._producers) > _MAX_PRODUCERS:
            self._producers.pop(next(iter(self._producers)))

    def sync(self) -> None:
        """Returns when what was appended before is on disk. May run in another thread."""
        try:
            if not self._is_deleted:
                self._segments[-1].sync()
        except OSError:
            if not self._is_deleted:  # else its files went meanwhile, and with them what was to be kept
                raise

    def mark_stable(self, offset: int) -> None:
        """The records before `offset` are on disk: whoever waits for more wakes."""
        if offset > self.stable_offset:
            self.stable_offset = offset
            now_s = time.monotonic()
            self._pause_s, self._moved_s = now_s - self._moved_s, now_s
            self.wake()

    def is_steady(self, within_s: float) -> bool:
        """Whether the newest records came less than so many seconds ago, and less than that after others."""
        return max(self._pause_s, time.monotonic() - self._moved_s) < within_s

    def forget_unstable(self) -> None:
        """Takes back what was appended and could not be brought to disk."""
        if self._is_deleted:
            return
        while len(self._segments) > 1 and self._segments[-1].base_offset >= self.stable_offset:
            self._segments.pop().delete()
        self._segments[-1].truncate(self.stable_offset)
        self._producers.clear()
        for segment in self._segments:
            for _, batch in segment.batches_from(segment.base_offset):
                self._remember(batch)

    def read(self, offset: int, max_bytes: int) -> bytes:
        """Whole batches from the one that holds `offset` on; empty at the end."""
        for segment in self._segments:
            if segment.end_offset > offset:
                data = segment.read(offset, self.stable_offset, max_bytes)
                if data:
                    return data
        return b""

    def offset_at(self, timestamp_ms: int) -> tuple[int, int] | None:
        """(offset, timestamp in ms) of the first record that is not older, or None."""
        for segment in self._segments:
            if segment.max_timestamp_ms < timestamp_ms:
                continue
            for position, batch in segment.batches_from(max(self.start_offset, segment.base_offset)):
                if batch.max_timestamp_ms < timestamp_ms or batch.next_offset > self.stable_offset:
                    continue
                for record in read_records(segment.read_batch(position, batch)):
                    if record.timestamp >= timestamp_ms and record.offset >= self.start_offset:
                        return record.offset, record.timestamp
        return None

    def watch(self, waiter: asyncio.Future[None]) -> None:
        """`waiter` gets its result when more can be read."""
        self._waiters.add(waiter)

    def unwatch(self, waiter: asyncio.Future[None]) -> None:
        """Undoes `watch`."""
        self._waiters.discard(waiter)

    def wake(self) -> None:
        """Wakes all that watch."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def delete_before(self, offset: int) -> None:
        """The log begins at `offset` from now on; files that lie wholly before it go."""
        if offset <= self.start_offset or self._is_closed:
            return
        replace_file(self.folder / _START_FILE, str(offset))
        self.start_offset = offset
        while len(self._segments) > 1 and self._segments[0].end_offset <= offset:
            self._segments.pop(0).delete()

    def delete_old(self, *, before_ms: int | None, max_bytes: int | None) -> None:
        """Removes closed files of records older than `before_ms`, and the oldest beyond `max_bytes`."""
        while len(self._segments) > 1 and not self._is_closed:
            oldest = self._segments[0]
            too_old = before_ms is not None and oldest.max_timestamp_ms < before_ms
            if not too_old and (max_bytes is None or self.size - oldest.size < max_bytes):
                return
            self.delete_before(self._segments[1].base_offset)

    def compact(self) -> Iterator[None]:
        """Drops, of the closed files, each batch whose every record has a later one of the same key.

        Does so when the closed files have grown to twice what was left the last time. A batch that cannot be
        decoded stays, and so does a tombstone: who reads the log again finds the same newest record of a key.
        An iterator over steps of some milliseconds: between two of them any other method may be called.
        """
        closed = self._segments[:-1]
        if sum(segment.size for segment in closed) <= 2 * self._compacted_bytes + self._segment_bytes // 2:
            return
        newest: dict[bytes | None, int] = {}
        for segment in [*self._segments]:
            for batch in self._in_steps(segment):
                if batch is None:
                    yield
                elif batch[1].next_offset > self.stable_offset:
                    break  # what is not on disk yet replaces nothing
                else:
                    newest.update(_records(segment, *batch))
        for segment in closed:
            yield from self._rewrite(segment, newest)
        self._compacted_bytes = sum(segment.size for segment in self._segments[:-1])

    def _rewrite(self, segment: Segment, newest: dict[bytes | None, int]) -> Iterator[None]:
        staging = self.folder / "compacted"
        if not self._has(segment):
            return
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        smaller = Segment(staging, segment.base_offset)
        replaced = smaller
        try:
            for batch in self._in_steps(segment):
                if batch is None:
                    yield
                elif self._is_needed(segment, *batch, newest):
                    smaller.append(segment.read_batch(*batch), batch[1])
            if self._has(segment):
                smaller.sync()
                smaller.end_offset = segment.end_offset
                smaller.path = smaller.path.replace(segment.path)
                self._segments[self._segments.index(segment)] = smaller
                replaced = segment
        finally:
            replaced.close()
            shutil.rmtree(staging, ignore_errors=True)

    def _is_needed(
        self, segment: Segment, position: int, batch: Batch, newest: dict[bytes | None, int]
    ) -> bool:
        producer = self._producers.get(batch.producer_id)
        if producer is not None and producer.last[-1][2] == batch.base_offset:
            return True  # a restart must find what its producer sent last
        records = _records(segment, position, batch)
        return not records or any(key is None or newest.get(key) == offset for key, offset in records)

    def _in_steps(self, segment: Segment) -> Iterator[tuple[int, Batch] | None]:
        """Position and header of each batch, and None where a step ends; stops where the file has gone."""
        num_bytes = 0
        if not self._has(segment):
            return
        for batch in segment.batches_from(segment.base_offset):
            yield batch
            num_bytes += batch[1].size
            if num_bytes >= _STEP_BYTES:
                num_bytes = 0
                yield None
                if not self._has(segment):
                    return

    def _has(self, segment: Segment) -> bool:
        return not self._is_closed and segment in self._segments

    def close(self) -> None:
        """Closes its files."""
        self._is_closed = True
        for segment in self._segments:
            segment.close()

    def delete(self) -> None:
        """Removes it from disk."""
        self._is_deleted = True
        self.close()
        shutil.rmtree(self.folder)
        self.wake()


def _records(segment: Segment, position: int, batch: Batch) -> list[tuple[bytes | None, int]]:
    """(key, offset) of each record; empty if the batch cannot be decoded."""
    try:
        return [(r.key, r.offset) for r in read_records(segment.read_batch(position, batch))]
    except Exception:  # a codec's errors have no common class
        logger.warning("batch_not_decoded path=%s offset=%d", segment.path, batch.base_offset)
        return []
