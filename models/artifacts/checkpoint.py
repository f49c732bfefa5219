"""Atomic directories of tensors, tables and metadata; nothing in them can execute anything.

Each group of tensors is one safetensors file, each table one Arrow file; `manifest.json` names them all with
sha256 and size, and carries the metadata and a hash of itself. What the tensors mean belongs to
`models/artifacts/release.py` and `models/online/learner_state.py`.

A directory appears whole or not at all: it is written under a temporary name, synced, and renamed. It is
never written again; a checkpoint that is replaced is a new numbered directory.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.artifacts.manifest import (
    MANIFEST_NAME,
    FileEntry,
    JsonValue,
    Manifest,
    json_sha256,
    manifest_body,
    read_file,
    read_manifest,
    require_safe,
)
from models.errors import IncompatibleCheckpoint

_TENSORS, _TABLE = ".safetensors", ".arrow"
_NUMBERED = re.compile(r"[0-9]{12}")
_TEMPORARY = re.compile(r"\..+\.tmp")
_PART_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, verified; tensors are on the CPU.

    Whoever takes over a group or a table may remove it here, so that a large one is not in memory twice.
    """

    tensors: dict[str, dict[str, Tensor]]
    tables: dict[str, pa.Table]
    meta: Mapping[str, Any]
    manifest: Manifest


def save(
    directory: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    tables: Mapping[str, pa.Table],
    meta: Mapping[str, JsonValue],
) -> Manifest:
    """Writes a new directory, whole and on the disk when this returns; tensors of any shape and dtype.

    Group and table names are lower-case letters, digits, _ and -. Raises FileExistsError if the directory
    exists, IncompatibleCheckpoint("unsafe_name") for any other name and ("non_finite") for a NaN or infinity
    in a tensor or table, ValueError for one in `meta`; an OSError (a full disk, say) leaves nothing new
    behind.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists; a checkpoint is never written again")
    # one after the other: what is written need not be in memory beside what it is made of
    writers: dict[str, Callable[[Path], FileEntry]] = {
        f"{name}{_TENSORS}": partial(_write_tensors, group) for name, group in tensors.items()
    }
    writers |= {f"{name}{_TABLE}": partial(_write_table, table) for name, table in tables.items()}
    for name in writers:
        require_safe(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        files = tuple(write(temporary / name) for name, write in sorted(writers.items()))
        body = manifest_body(meta, files)
        digest = json_sha256(body)
        text = json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1, allow_nan=False)
        _write(temporary / MANIFEST_NAME, text.encode())
        sync_directory(temporary)
        os.rename(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(directory.parent)
    return Manifest(meta=dict(meta), files=files, sha256=digest)


def load(directory: Path) -> Checkpoint:
    """Reads and verifies everything; raises IncompatibleCheckpoint with the reason."""
    manifest = read_manifest(directory)
    tensors: dict[str, dict[str, Tensor]] = {}
    tables: dict[str, pa.Table] = {}
    for entry in manifest.files:
        payload = _read_verified(directory, entry)
        stem, suffix = entry.name.rsplit(".", 1)
        if f".{suffix}" == _TENSORS:
            tensors[stem] = _parse_tensors(entry.name, payload)
        else:
            tables[stem] = _parse_table(entry.name, payload)
    return Checkpoint(tensors=tensors, tables=tables, meta=manifest.meta, manifest=manifest)


def verify(directory: Path) -> Manifest:
    """Checks the manifest and the hash of every file without parsing them; raises like `load`."""
    manifest = read_manifest(directory)
    for entry in manifest.files:
        _read_verified(directory, entry)
    return manifest


def next_directory(root: Path) -> Path:
    """The name of the next numbered checkpoint under `root`; nothing is made."""
    present = numbered(root)
    return root / f"{int(present[-1].name) + 1 if present else 0:012d}"


def numbered(root: Path) -> list[Path]:
    """The numbered checkpoints under `root`, oldest first, whole or broken."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NUMBERED.fullmatch(path.name))


def newest(root: Path) -> Path | None:
    """The newest numbered checkpoint under `root`, not verified; None when there is none."""
    present = numbered(root)
    return present[-1] if present else None


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` numbered checkpoints, and what killed writers left.

    For the one process that writes under `root`: another's half-written directory would go too.
    """
    if keep < 1:
        raise ValueError("keep must be at least 1")
    for directory in numbered(root)[:-keep]:
        shutil.rmtree(directory)
    if root.is_dir():
        for path in root.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path)


def _write_tensors(group: Mapping[str, Tensor], path: Path) -> FileEntry:
    # clones of those that share memory, as tied weights do: safetensors refuses them
    tensors, seen = {}, set[int]()
    for key, value in group.items():
        tensor = value.detach().cpu()
        place = tensor.untyped_storage().data_ptr()
        is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        tensors[key] = tensor if is_whole and place not in seen else tensor.clone().contiguous()
        seen.add(place)
    _require_finite_tensors(path.name, tensors)
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    return _written(path)


def _write_table(table: pa.Table, path: Path) -> FileEntry:
    _require_finite_table(path.name, table)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return _written(path)


def _parse_tensors(name: str, payload: bytes) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IncompatibleCheckpoint("format", f"{name}: {error}") from error
    _require_finite_tensors(name, tensors)
    return tensors


def _parse_table(name: str, payload: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.BufferReader(payload)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IncompatibleCheckpoint("format", f"{name}: {error}") from error
    _require_finite_table(name, table)
    return table


def _require_finite_tensors(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        # in parts: what torch makes on the way is larger than the tensor
        parts = torch.split(tensor.flatten(), _PART_NUMBERS) if tensor.is_floating_point() else ()
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise IncompatibleCheckpoint("non_finite", f"{name}: {key} holds NaN or infinity")


def _require_finite_table(name: str, table: pa.Table) -> None:
    for key, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks:
            values = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
            if pa.types.is_floating(values.type) and pc.all(pc.is_finite(values)).as_py() is False:
                raise IncompatibleCheckpoint("non_finite", f"{name}: {key} holds NaN or infinity")


def _read_verified(directory: Path, entry: FileEntry) -> bytes:
    """The file's bytes; the same bytes are hashed and parsed, so nothing can change in between."""
    payload = read_file(directory / entry.name)
    if len(payload) != entry.size_bytes:
        raise IncompatibleCheckpoint("size", f"{entry.name}: {len(payload)} bytes, not {entry.size_bytes}")
    if hashlib.sha256(payload).hexdigest() != entry.sha256:
        raise IncompatibleCheckpoint("checksum", f"{entry.name} does not match its hash")
    return payload


def _write(path: Path, payload: bytes) -> None:
    with path.open("xb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _written(path: Path) -> FileEntry:
    """A file that was just written, on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return FileEntry(path.name, digest, path.stat().st_size)


def sync_directory(directory: Path) -> None:
    """Returns once everything that was made or renamed in a directory is on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
