"""The ledger: a text file of every learned event id, one a line, for audits.

Append-only. A checkpoint holds the length the file had; what a killed process appended after its last
checkpoint is cut off on resume, because those events will be learned, and written, again.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self


class Ledger:
    """The file at `path`, cut to `num_bytes` and open for appending.

    Raises OSError, and ValueError if the file is shorter than `num_bytes`: then lines were lost.
    """

    def __init__(self, path: Path, *, num_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        size = self._file.seek(0, os.SEEK_END)
        if size < num_bytes:
            self._file.close()
            raise ValueError(f"{path} has {size} bytes, its checkpoint says {num_bytes}")
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)

    def append(self, event_ids: Iterable[str]) -> None:
        """Adds ids; they are on disk after the next `flush`."""
        self._file.write("".join(f"{event_id}\n" for event_id in event_ids).encode())

    def flush(self) -> int:
        """Makes every line durable and returns the file's length in bytes, for the checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file; lines not yet flushed may be cut off on resume."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
