"""One file of a partition's log: record batches one after the other, and a sparse index in memory."""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from streaming.broker.batches import HEADER_BYTES, BadBatch, Batch, is_sound, read_batches

_INDEX_EVERY_BYTES = 4096
_READ_BYTES = 1 << 16


class Segment:
    """Batches from `base_offset` on, in a file named by it; `end_offset` is that after the last one.

    Raises OSError where the disk does; then the file is as it was before the call.
    """

    def __init__(self, folder: Path, base_offset: int) -> None:
        self.base_offset = self.end_offset = base_offset
        self.size = 0
        self.max_timestamp_ms = -1
        self.path = folder / f"{base_offset:020d}.log"
        is_new = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if is_new:
            sync_folder(folder)
        self._offsets, self._positions = array("q"), array("q")

    def recover(self, *, verify: bool) -> Iterator[Batch]:
        """Reads what is in the file; yields each batch and cuts off a torn end.

        With `verify` each batch's checksum is held against it, and the file ends before the first that fails.
        """
        data = self.read_all()
        try:
            for position, batch in read_batches(data):
                if batch.base_offset < self.end_offset:
                    raise BadBatch("a batch begins before the end of the one before it")
                if verify and not is_sound(data[position : position + batch.size]):
                    raise BadBatch("a batch's checksum does not hold")
                self._index(batch)
                yield batch
        except BadBatch:
            os.ftruncate(self._file, self.size)

    def append(self, data: bytes, batch: Batch) -> None:
        """Writes one batch at the end."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self.size + written)
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self._index(batch)

    def _index(self, batch: Batch) -> None:
        if not self._positions or self.size - self._positions[-1] >= _INDEX_EVERY_BYTES:
            self._offsets.append(batch.base_offset)
            self._positions.append(self.size)
        self.size += batch.size
        self.end_offset = batch.next_offset
        self.max_timestamp_ms = max(self.max_timestamp_ms, batch.max_timestamp_ms)

    def sync(self) -> None:
        """Returns when all that was appended before is on disk. May run in another thread."""
        os.fdatasync(self._file)

    def read(self, offset: int, before: int, max_bytes: int) -> bytes:
        """Whole batches from the one that holds `offset` on, none from offset `before` on.

        At least one batch, else not more than `max_bytes`; empty if the file has none of that kind.
        """
        start = end = -1
        for position, batch in self.batches_from(offset):
            if batch.next_offset > before or (start >= 0 and position + batch.size - start > max_bytes):
                break
            if batch.next_offset > offset:
                start, end = (position if start < 0 else start), position + batch.size
        return os.pread(self._file, end - start, start) if start >= 0 else b""

    def batches_from(self, offset: int) -> Iterator[tuple[int, Batch]]:
        """Position and header of each batch from one at or before `offset` on."""
        entry = bisect_right(self._offsets, offset) - 1
        position = self._positions[entry] if entry >= 0 else 0
        chunk, chunk_start = b"", 0
        while position < self.size:
            if not chunk_start <= position <= chunk_start + len(chunk) - HEADER_BYTES:
                chunk, chunk_start = os.pread(self._file, _READ_BYTES, position), position
            batch = Batch.read(chunk, position - chunk_start)
            yield position, batch
            position += batch.size

    def read_batch(self, position: int, batch: Batch) -> bytes:
        """The bytes of one batch."""
        return os.pread(self._file, batch.size, position)

    def read_all(self) -> bytes:
        """The whole file."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def truncate(self, offset: int) -> None:
        """Forgets the batches from `offset` on."""
        kept = [batch for _, batch in self.batches_from(self.base_offset) if batch.base_offset < offset]
        os.ftruncate(self._file, sum(batch.size for batch in kept))
        self._offsets, self._positions = array("q"), array("q")
        self.size, self.end_offset, self.max_timestamp_ms = 0, self.base_offset, -1
        for batch in kept:
            self._index(batch)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def delete(self) -> None:
        """Removes the file."""
        self.close()
        self.path.unlink()


def replace_file(path: Path, text: str) -> None:
    """The file holds `text` from now on; a crash leaves the old text or the new one."""
    staged = path.with_suffix(".new")
    with staged.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the names of the files in it are on disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
