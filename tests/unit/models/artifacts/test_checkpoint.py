"""Checkpoints: whole or absent, verified before anything is parsed, and never executing anything."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from models.artifacts import checkpoint
from models.artifacts.checkpoint import load, next_directory, numbered, prune, save
from models.artifacts.manifest import Manifest, json_sha256
from models.errors import IncompatibleCheckpoint

META = {"name": "a", "nested": {"z": [1, 2.5, None], "a": True}}


def save_sample(directory: Path, value: float = 1.0) -> Manifest:
    weight = torch.full((2, 3), value)
    return save(
        directory,
        tensors={
            "model": {"weight": weight, "tied": weight, "view": torch.arange(6).reshape(2, 3).T},
            "optimiser": {"step": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)},
            "empty": {},
        },
        tables={"items": pa.table({"item_id": ["a", "b"], "price": [0.5, None]})},
        meta=META,
    )


def rewrite_manifest(directory: Path, change: Callable[[dict], object], *, rehash: bool = True) -> None:
    path = directory / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    if rehash:
        document.pop("sha256", None)
        document["sha256"] = json_sha256(document)
    path.write_text(json.dumps(document))


def refused_reason(directory: Path) -> str:
    with pytest.raises(IncompatibleCheckpoint) as error:
        load(directory)
    return error.value.reason


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    manifest = save_sample(tmp_path / "a" / "b")
    loaded = load(tmp_path / "a" / "b")
    assert loaded.manifest == manifest
    assert loaded.meta == META
    assert set(loaded.tensors) == {"model", "optimiser", "empty"}
    assert torch.equal(loaded.tensors["model"]["view"], torch.arange(6).reshape(2, 3).T)
    assert torch.equal(loaded.tensors["model"]["tied"], torch.ones(2, 3))
    assert loaded.tensors["optimiser"]["half"].dtype == torch.bfloat16
    assert int(loaded.tensors["optimiser"]["step"]) == 7
    assert loaded.tables["items"].to_pydict() == {"item_id": ["a", "b"], "price": [0.5, None]}
    names = {entry.name for entry in manifest.files} | {"manifest.json"}
    assert names == set(os.listdir(tmp_path / "a" / "b"))


def test_the_same_content_has_the_same_hash(tmp_path: Path) -> None:
    assert save_sample(tmp_path / "a").sha256 == save_sample(tmp_path / "b").sha256
    assert save_sample(tmp_path / "c", value=2.0).sha256 != save_sample(tmp_path / "d").sha256


def test_a_checkpoint_is_never_written_again(tmp_path: Path) -> None:
    save_sample(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for name in ("a", "empty"):
        with pytest.raises(FileExistsError):
            save_sample(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["a", "empty"]


@pytest.mark.parametrize("name", ["model.safetensors", "items.arrow", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    save_sample(tmp_path / "a")
    path = tmp_path / "a" / name
    original = path.read_bytes()
    for position in range(0, len(original), max(1, len(original) // 40)):
        flipped = bytearray(original)
        flipped[position] ^= 0x10
        path.write_bytes(bytes(flipped))
        if name == "manifest.json" and json_or_none(flipped) == json.loads(original):
            continue  # white space
        assert refused_reason(tmp_path / "a") in ("checksum", "format", "unsafe_name", "missing_file", "size")


def json_or_none(raw: bytearray) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def test_damaged_directories_are_refused_with_the_reason(tmp_path: Path) -> None:
    def damaged(name: str, damage: Callable[[Path], object]) -> str:
        save_sample(tmp_path / name)
        damage(tmp_path / name)
        return refused_reason(tmp_path / name)

    assert refused_reason(tmp_path / "nowhere") == "missing_file"
    assert damaged("a", lambda d: (d / "model.safetensors").unlink()) == "missing_file"
    assert damaged("b", lambda d: (d / "manifest.json").unlink()) == "missing_file"
    assert damaged("c", lambda d: os.truncate(d / "items.arrow", 20)) == "size"
    assert damaged("d", lambda d: (d / "manifest.json").write_text("[]")) == "format"
    assert damaged("e", lambda d: (d / "manifest.json").write_bytes(b"\x80\x04")) == "format"
    assert damaged("f", lambda d: (d / "manifest.json").write_text("[" * 100_000)) == "format"
    assert damaged("g", lambda d: rewrite_manifest(d, lambda m: m.update(format=2))) == "format"
    assert (
        damaged("h", lambda d: rewrite_manifest(d, lambda m: m["meta"].clear(), rehash=False)) == "checksum"
    )
    assert damaged("i", lambda d: rewrite_manifest(d, lambda m: m["files"].append(m["files"][0]))) == "format"


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "model.pkl", "a/b.arrow", ".arrow", ""]
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    save_sample(tmp_path / "a")
    rewrite_manifest(tmp_path / "a", lambda m: m["files"][0].update(name=name))
    assert refused_reason(tmp_path / "a") == "unsafe_name"
    with pytest.raises(IncompatibleCheckpoint, match="no name"):
        save(tmp_path / "b", tensors={f"../{name}": {}}, tables={}, meta={})
    assert os.listdir(tmp_path) == ["a"]


def test_links_are_refused(tmp_path: Path) -> None:
    save_sample(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert refused_reason(tmp_path / "a") == "unsafe_name"


@pytest.mark.parametrize("payload", [b"\x80\x04K\x01.", b"", b"\xff" * 64, b"PK\x03\x04" + b"0" * 60])
@pytest.mark.parametrize("index", [0, 1])
def test_files_of_another_format_are_refused_even_with_the_right_hash(
    tmp_path: Path, payload: bytes, index: int
) -> None:
    save_sample(tmp_path / "a")

    def replace(manifest: dict) -> None:
        entry = manifest["files"][index]
        (tmp_path / "a" / entry["name"]).write_bytes(payload)
        entry.update(sha256=checkpoint.hashlib.sha256(payload).hexdigest(), size_bytes=len(payload))

    rewrite_manifest(tmp_path / "a", replace)
    assert refused_reason(tmp_path / "a") == "format"


def test_non_finite_values_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> None:
        save(tmp_path / f"{name}t", tensors={"t": {"x": torch.tensor([torch.nan])}}, tables={}, meta={})

    def write_table(name: str) -> None:
        lists = pa.FixedSizeListArray.from_arrays(pa.array([1.0, float("inf")]), 2)
        save(tmp_path / f"{name}l", tensors={}, tables={"l": pa.table({"x": lists})}, meta={})

    for writer in (write, write_table):
        with pytest.raises(IncompatibleCheckpoint, match="infinity"):
            writer("a")
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "meta", tensors={}, tables={}, meta={"x": float("nan")})
    assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_require_finite_tensors", lambda *_: None)
        patch.setattr(checkpoint, "_require_finite_table", lambda *_: None)
        write("b")
        write_table("b")
    assert refused_reason(tmp_path / "bt") == refused_reason(tmp_path / "bl") == "non_finite"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "rename", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_sample(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_checkpoints_are_numbered_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "learner"
    assert numbered(root) == []
    for value in range(3):
        save_sample(next_directory(root), value=float(value))
    assert next_directory(root).name == "000000000003"
    assert [path.name for path in numbered(root)] == ["000000000000", "000000000001", "000000000002"]
    (root / ".000000000003.abcd.tmp").mkdir()
    prune(root, keep=2)
    assert sorted(os.listdir(root)) == ["000000000001", "000000000002"]
    with pytest.raises(ValueError, match="keep"):
        prune(root, keep=0)
