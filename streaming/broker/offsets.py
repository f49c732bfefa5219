"""What consumer groups committed: one JSON line for each commit, read again at the start."""

import json
from pathlib import Path
from typing import NamedTuple

from streaming.broker.segment import replace_file

_MAX_BYTES = 4 << 20


class Committed(NamedTuple):
    """An offset and the text that its consumer put beside it."""

    offset: int
    metadata: str | None


class GroupOffsets:
    """The last commit of each group for each partition. Raises OSError if the file cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "offsets.jsonl"
        self._committed: dict[str, dict[tuple[str, int], Committed]] = {}
        if self._path.exists():
            for line in self._path.read_text(errors="replace").splitlines():
                try:
                    group, topic, partition, offset, metadata = json.loads(line)
                    one = Committed(int(offset), None if metadata is None else str(metadata))
                    self._set(str(group), (str(topic), int(partition)), one)
                except (ValueError, TypeError, OverflowError, RecursionError):
                    continue  # the line that a crash cut off: its consumer reads a few records again
        self._rewrite()

    def groups(self) -> list[str]:
        """Whoever has committed something."""
        return list(self._committed)

    def of(self, group: str) -> dict[tuple[str, int], Committed]:
        """What a group committed, by (topic, partition)."""
        return self._committed.get(group, {})

    def commit(self, group: str, commits: dict[tuple[str, int], Committed]) -> None:
        """Keeps commits; they are in the file when this returns."""
        self._file.write("".join(_line(group, key, one) for key, one in commits.items()))
        self._file.flush()
        for key, one in commits.items():
            self._set(group, key, one)
        if self._file.tell() > _MAX_BYTES + 2 * self._compact_bytes:
            self._rewrite()

    def forget_topic(self, name: str) -> None:
        """Drops what was committed for a topic that is gone."""
        for committed in self._committed.values():
            for key in [key for key in committed if key[0] == name]:
                del committed[key]
        self._rewrite()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _set(self, group: str, key: tuple[str, int], one: Committed) -> None:
        self._committed.setdefault(group, {})[key] = one

    def _rewrite(self) -> None:
        lines = [
            _line(group, key, one) for group, all_ in self._committed.items() for key, one in all_.items()
        ]
        replace_file(self._path, "".join(lines))
        self._file = self._path.open("a")
        self._compact_bytes = self._file.tell()


def _line(group: str, key: tuple[str, int], one: Committed) -> str:
    return json.dumps([group, *key, one.offset, one.metadata]) + "\n"
