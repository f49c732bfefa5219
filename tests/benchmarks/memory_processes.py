"""What `/proc` says of a process's memory and page faults, and by how much it grows with items and users.

The proportional set size (PSS) divides pages that several processes share among them, so the sum over all
processes is what a stack takes. All figures in 10^6 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KB = 1024 / 1e6
# what a mapping's path tells of it; anonymous mappings have none, or one in brackets
_CODE = (".so", "/python", ".pyc", "/lib/", "/locale")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The PSS of one process: `own` pages are anonymous and nobody else's; `shared` ones are anonymous and
    were made before a fork; `code` is of programs and libraries; `files` are mapped data (stores, weights).
    """

    own: float
    shared: float
    code: float
    files: float

    @property
    def pss(self) -> float:
        """All of it."""
        return self.own + self.shared + self.code + self.files

    @classmethod
    def of(cls, pid: int) -> "Memory":
        """As `/proc/PID/smaps` tells it now; OSError if the process has ended."""
        parts = dict.fromkeys(("own", "shared", "code", "files"), 0.0)
        path, values = "", dict[str, int]()
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            first, _, rest = line.partition(" ")
            if first.endswith(":"):
                values[first] = int(value) if (value := rest.split()[0]).isdigit() else 0
            else:
                _add(parts, path, values)
                path, values = line[line.find("/") :] if "/" in line else "", {}
        _add(parts, path, values)
        return cls(**parts)


def _add(parts: dict[str, float], path: str, values: Mapping[str, int]) -> None:
    """Adds one mapping: its private anonymous pages, and of the rest whatever its path says."""
    if "Pss:" not in values:
        return
    # a page that was written to in a file's private mapping is anonymous, too
    own = min(values["Anonymous:"], values["Private_Dirty:"])
    parts["own"] += own * _KB
    kind = "shared" if not path else "code" if any(mark in path for mark in _CODE) else "files"
    parts[kind] += max(0, values["Pss:"] - own) * _KB


def page_faults(pid: int) -> tuple[int, int]:
    """(minor, major) page faults of a process since it began: found in memory, and read from a disk."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[7]), int(fields[9])
