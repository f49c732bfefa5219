"""Where machine code is kept: never that of other sources."""

from pathlib import Path

import numba
import pytest

from models.kernels import compiled


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"from models.kernels.compiled import compiled\n{text}\n")


def test_another_source_anywhere_is_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MODELS", tmp_path)
    write(tmp_path, "caller.py", "1")
    write(tmp_path, "callee.py", "2")
    (tmp_path / "other.py").write_text("nothing compiled")
    first = compiled.cache_name()
    assert compiled.cache_name() == first
    (tmp_path / "other.py").write_text("still nothing compiled")
    assert compiled.cache_name() == first
    write(tmp_path, "callee.py", "3")
    assert compiled.cache_name() != first


def test_what_others_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_BESIDE_SOURCES", tmp_path)
    for name in (compiled.cache_name(), "numba-0123", "elsewhere"):
        (tmp_path / name).mkdir()
    compiled.forget_other_sources()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([compiled.cache_name(), "elsewhere"])


def test_it_is_where_numba_looks() -> None:
    assert Path(numba.config.CACHE_DIR).name == compiled.cache_name()
