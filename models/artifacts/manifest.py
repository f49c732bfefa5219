"""What a checkpoint consists of, as its `manifest.json` says: files with their hashes, and metadata.

Needs no torch, so a caller that only asks what is there does not pay for it. Writing and reading the files
themselves is `models/artifacts/checkpoint.py`'s.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from models.errors import IncompatibleCheckpoint

JsonValue: TypeAlias = "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

FORMAT = 1
MANIFEST_NAME = "manifest.json"
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.(safetensors|arrow)")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint; `sha256` in hexadecimal."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of; `sha256` is the hash of `meta` and `files` in canonical JSON."""

    meta: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    sha256: str


def canonical_json(value: JsonValue) -> str:
    """The one JSON text of a value: sorted keys, no spaces; raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_sha256(value: JsonValue) -> str:
    """The hexadecimal sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, checked against its own hash; raises IncompatibleCheckpoint."""
    raw = read_file(directory / MANIFEST_NAME)
    try:
        document = json.loads(raw)
        if document["format"] != FORMAT:
            raise IncompatibleCheckpoint(
                "format", f"written in format {document['format']!r:.20}, this version reads {FORMAT}"
            )
        files = tuple(
            FileEntry(str(entry["name"]), str(entry["sha256"]), int(entry["size_bytes"]))
            for entry in document["files"]
        )
        meta, digest = dict(document["meta"]), document["sha256"]
        expected = json_sha256(manifest_body(meta, files))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IncompatibleCheckpoint("format", f"{directory / MANIFEST_NAME}: {error!r}") from error
    if digest != expected:
        raise IncompatibleCheckpoint("checksum", f"{directory / MANIFEST_NAME} does not match its hash")
    for entry in files:
        require_safe(entry.name)
    if len({entry.name for entry in files}) != len(files):
        raise IncompatibleCheckpoint("format", f"{directory / MANIFEST_NAME} names a file twice")
    return Manifest(meta=meta, files=files, sha256=expected)


def manifest_body(meta: Mapping[str, JsonValue], files: Sequence[FileEntry]) -> dict[str, JsonValue]:
    """The manifest without its own hash."""
    return {
        "format": FORMAT,
        "meta": meta,
        "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in files],
    }


def require_safe(name: str) -> None:
    """Raises IncompatibleCheckpoint unless it is a plain name of a checkpoint's file."""
    if not _SAFE_NAME.fullmatch(name):
        raise IncompatibleCheckpoint("unsafe_name", f"{name!r} is no name of a checkpoint's file")


def read_file(path: Path) -> bytes:
    """The bytes of a file that is no link; raises IncompatibleCheckpoint."""
    if path.is_symlink():
        raise IncompatibleCheckpoint("unsafe_name", f"{path} is a link")
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise IncompatibleCheckpoint("missing_file", f"{path} is missing") from error
