"""A dependency with one of our top-level names would shadow us: each package must resolve here."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["services", "protos", "streaming", "models"])
def test_package_resolves_inside_the_repository(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(REPOSITORY)


def test_unit_tests_stand_where_their_sources_do() -> None:
    """`test_log.py`, and one subject of it, `test_log_compaction.py`, where `log.py` stands."""
    unit = REPOSITORY / "tests" / "unit"
    for package in ("models", "services", "streaming"):
        for test in (unit / package).rglob("test_*.py"):
            folder = REPOSITORY / test.parent.relative_to(unit)
            words = test.stem.removeprefix("test_").split("_")
            sources = [folder / f"{'_'.join(words[:n])}.py" for n in range(len(words), 0, -1)]
            assert any(source.exists() for source in sources), f"{test} tests none of {sources}"


def test_each_room_says_what_it_owns_and_what_it_must_not_know() -> None:
    for package in ("models", "services", "streaming"):
        for room in (REPOSITORY / package).rglob("__init__.py"):
            said = ast.get_docstring(ast.parse(room.read_text())) or ""
            assert len(said.split("\n\n")) >= 2, f"{room} says too little"


def test_what_serves_is_imported_without_faiss() -> None:
    """Only who fits a codebook needs it, and which of its builds is there depends on the machine."""
    modules = ["models.catalogue.index", "models.artifacts.release", "models.ranking.pipeline"]
    modules += [f"services.{name}.serving" for name in ("tokenizer", "generator", "ranker")]
    code = f"import sys; sys.modules['faiss'] = None; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
