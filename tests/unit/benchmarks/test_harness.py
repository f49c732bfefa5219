"""The benchmarks' harness: only finite numbers are written, and documents change only where they say."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "harness.py"
MACHINE = {"cpu": "one of a test", "matmul_tflops": {"float32": 0.1}}


def load_harness() -> ModuleType:
    """The script as a module: nothing under tests/ is a package."""
    spec = importlib.util.spec_from_file_location("harness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_harness()
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "DOCUMENTS", tmp_path)
    monkeypatch.setattr(module, "machine", lambda: MACHINE)
    return module


def document(harness: ModuleType, name: str, text: str) -> Path:
    page: Path = harness.DOCUMENTS / name
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return page


def test_results_come_back_with_machine_and_command(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--json"])
    rows = [{"ms": np.float32(0.5), "beam": np.int64(5)}]
    path = harness.write_results("decode", {"rows": rows}, quick=False)
    assert path == harness.RESULTS / "decode.json"
    loaded = harness.load_results("decode")
    assert loaded["rows"] == [{"ms": 0.5, "beam": 5}]
    assert loaded["machine"] == MACHINE
    assert loaded["command"] == "python tests/benchmarks/harness.py --json"


def test_quick_results_stay_apart(harness: ModuleType) -> None:
    path = harness.write_results("decode", {"rows": []}, quick=True)
    assert path == harness.RESULTS / "quick" / "decode.json"
    assert harness.load_results("decode", quick=True)["quick"] is True
    with pytest.raises(FileNotFoundError):
        harness.load_results("decode")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, -np.inf])])
def test_a_number_that_is_not_finite_is_refused_and_named(harness: ModuleType, bad: object) -> None:
    with pytest.raises(ValueError, match=r"decode\.rows\[1\]\.ms"):
        harness.write_results("decode", {"rows": [{"ms": 1.0}, {"ms": bad}]}, quick=False)
    assert not (harness.RESULTS / "decode.json").exists()


def test_what_json_cannot_say_is_refused(harness: ModuleType) -> None:
    with pytest.raises(TypeError, match="object"):
        harness.write_results("decode", {"rows": [object()]}, quick=False)


def test_percentiles_are_in_milliseconds(harness: ModuleType) -> None:
    found = harness.percentiles([n / 1000 for n in range(1, 102)])
    assert found["p50_ms"] == pytest.approx(51)
    assert found["p99_ms"] == pytest.approx(100)
    with pytest.raises(ValueError):
        harness.percentiles([])


@pytest.mark.parametrize("name", ["README.md", "docs/page.md", "docs/benchmarks/decoding.md"])
def test_a_document_changes_between_its_markers_only(harness: ModuleType, name: str) -> None:
    page = document(harness, name, "before\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nafter\n")
    other = document(harness, "docs/other.md", "of another table\n<!-- bench:c -->\n<!-- /bench:c -->\n")
    assert harness.readme_table("a", "| new |", quick=False)
    assert page.read_text() == "before\n<!-- bench:a -->\n| new |\n<!-- /bench:a -->\nafter\n"
    assert not harness.readme_table("a", "| quick |", quick=True)
    assert not harness.readme_table("b", "| other |", quick=False)
    assert "| new |" in page.read_text()
    assert other.read_text() == "of another table\n<!-- bench:c -->\n<!-- /bench:c -->\n"


def test_every_document_that_has_the_marker_gets_the_table(harness: ModuleType) -> None:
    pages = [
        document(harness, name, "<!-- bench:a -->\n<!-- /bench:a -->\n")
        for name in ("README.md", "docs/a.md")
    ]
    assert harness.readme_table("a", "| new |", quick=False)
    assert [page.read_text() for page in pages] == ["<!-- bench:a -->\n| new |\n<!-- /bench:a -->\n"] * 2


def test_a_marker_without_its_end_is_left_alone(harness: ModuleType) -> None:
    page = document(harness, "docs/a.md", "<!-- /bench:a -->\n<!-- bench:a -->\nold\n")
    assert not harness.readme_table("a", "| new |", quick=False)
    assert page.read_text() == "<!-- /bench:a -->\n<!-- bench:a -->\nold\n"


def test_every_table_of_the_benchmarks_has_its_place_in_a_document() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPT.parent.glob("*.py"))
    module = load_harness()
    markers = [
        marker
        for page in module._documents()
        for marker in re.findall(r"<!-- bench:([a-z-]+) -->", page.read_text(encoding="utf-8"))
    ]
    assert sorted(markers) == sorted(set(markers))
    assert markers
    assert [marker for marker in markers if f'"{marker}"' not in scripts] == []
    written = set(re.findall(r'readme_table\(\s*"([a-z-]+)"', scripts))
    assert written - set(markers) == set()


def test_markdown_table(harness: ModuleType) -> None:
    rows = [{"name": "a", "ms": 1.23456, "n": 12101}, {"name": "b", "ms": 0.001234, "n": None}]
    lines = harness.markdown_table(rows, {"name": "who", "ms": "ms", "n": "items"}).splitlines()
    assert lines == [
        "| who | ms | items |",
        "| --- | --- | --- |",
        "| a | 1.23 | 12,101 |",
        "| b | 0.00123 |  |",
    ]


def test_data_folder_says_what_to_do(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_DATA", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert harness.data_folder("here") == tmp_path / "here"
    with pytest.raises(FileNotFoundError, match="HEADRACE_BENCH_DATA"):
        harness.data_folder("missing")


def test_a_plot_is_an_svg(harness: ModuleType) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4])
    path = harness.save_plot(figure, "curve", quick=False)
    assert path == harness.RESULTS / "curve.svg"
    assert "<svg" in path.read_text(encoding="utf-8")


def test_the_machine_was_measured() -> None:
    found = load_harness().machine()
    assert found["matmul_tflops"]["float32"] > 0
    assert found["memory_gb_s"] > 0
    assert json.dumps(found)
