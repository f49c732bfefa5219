"""What all benchmarks share: the command line, the machine, results as JSON, plots, tables in documents.

Owns where results go and their form; knows nothing of what is measured. Scripts are run as
`python tests/benchmarks/bench_X.py`, so they import it as `from harness import ...`.

A quick run (`--quick`) proves that a benchmark runs and that its numbers are finite; it writes beside
the real results, into `results/quick/`, and never touches a document.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "headrace"  # the same figures give the same file

from matplotlib.figure import Figure  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
DOCUMENTS = REPOSITORY  # its README.md, and the pages under docs/

# services refuse a HEADRACE_ variable they do not know, so the ones that a benchmark starts must not see it
_DATA = os.environ.pop("HEADRACE_BENCH_DATA", None)
_MATMUL_WIDTH = 1024
_COPY_BYTES = 1 << 28
_MIN_REPEATS, _MAX_PROBE_S = 3, 0.6

Rows = Sequence[Mapping[str, Any]]
Columns = Sequence[str] | Mapping[str, str]

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)


def parser(description: str | None, *, threads: int = 2) -> argparse.ArgumentParser:
    """The options that every benchmark has: --quick, --json and --threads."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="few and short measurements: does it run?")
    result.add_argument("--json", action="store_true", help="the results as JSON on standard output")
    result.add_argument("--threads", type=int, default=threads, help="torch's threads")
    return result


def progress() -> Progress:
    """A progress bar on standard error, to be used as a context."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


@cache
def machine() -> dict[str, Any]:
    """This machine: CPU, its units for bf16, torch, and what it was measured to do.

    `matmul_tflops` holds the fastest square product of `torch.get_num_threads()` threads for each dtype
    (10^12 floating-point operations a second, a multiply-add being two), `memory_gb_s` the fastest copy
    of a quarter of a GiB (bytes read + bytes written, 10^9 a second). Measured once; about two seconds.
    """
    flags = _cpu_flags()
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 2),
        "matmul_tflops": {
            "float32": _matmul_tflops(torch.float32),
            "bfloat16": _matmul_tflops(torch.bfloat16),
        },
        "memory_gb_s": _memory_gb_s(),
    }


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """`p50_ms` and `p99_ms` of some durations in seconds; ValueError without any."""
    values = np.fromiter(seconds, np.float64)
    if not len(values):
        raise ValueError("no durations")
    p50, p99 = np.percentile(values, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call takes, wall clock."""
    begin_s = time.perf_counter()
    work()
    return time.perf_counter() - begin_s


def data_folder(name: str) -> Path:
    """The data set `name`: beside the repository in shared/data, or in $HEADRACE_BENCH_DATA.

    Raises FileNotFoundError that says what to do.
    """
    folder = (Path(_DATA) if _DATA else REPOSITORY.parent / "shared" / "data") / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no data set {name!r} in {folder.parent}: put it there, or set HEADRACE_BENCH_DATA to the "
            f"folder that holds {name}/ (interactions.parquet, items.jsonl.gz; see docs/api.md)"
        )
    return folder


def write_results(name: str, payload: Mapping[str, Any], *, quick: bool) -> Path:
    """Writes `payload` with `machine` and `command` added to results/NAME.json; returns the file.

    Raises ValueError, and writes nothing, when a number anywhere in it is not finite. numpy and torch
    numbers become plain ones.
    """
    whole = {"command": _command(), "quick": quick, "machine": machine(), **payload}
    plain = _plain(whole, name)
    path = _place(f"{name}.json", quick=quick)
    path.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def load_results(name: str, *, quick: bool = False) -> dict[str, Any]:
    """What `write_results` wrote; FileNotFoundError when that never happened."""
    path = (RESULTS / "quick" if quick else RESULTS) / f"{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def save_plot(figure: Figure, name: str, *, quick: bool) -> Path:
    """Writes results/NAME.svg and returns the file. Make figures with `figure = Figure(layout=...)`."""
    path = _place(f"{name}.svg", quick=quick)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def readme_table(marker: str, markdown: str, *, quick: bool) -> bool:
    """Replaces what stands between `<!-- bench:MARKER -->` and `<!-- /bench:MARKER -->` in the documents.

    Those are README.md and every page under docs/; each that has the marker gets the table. Returns whether
    one did: not in a quick run, nor where no document has both ends of the marker.
    """
    if quick:
        return False
    changed = [_replace_between(page, marker, markdown) for page in _documents()]
    return any(changed)


def _documents() -> list[Path]:
    pages = [DOCUMENTS / "README.md", *sorted((DOCUMENTS / "docs").rglob("*.md"))]
    return [page for page in pages if page.is_file()]


def _replace_between(page: Path, marker: str, markdown: str) -> bool:
    begin, end = f"<!-- bench:{marker} -->", f"<!-- /bench:{marker} -->"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if found:
        page.write_text(f"{before}{begin}\n{markdown.strip()}\n{end}{after}", encoding="utf-8")
    return bool(found)


def markdown_table(rows: Rows, columns: Columns) -> str:
    """A Markdown table; `columns` are keys of the rows, or keys with their headings."""
    keys, headings = _headings(columns)
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(text_of(row.get(key)) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def show(title: str, rows: Rows, columns: Columns) -> None:
    """The same table on the terminal."""
    keys, headings = _headings(columns)
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*(text_of(row.get(key)) for key in keys))
    console.print(table)


def text_of(value: object) -> str:
    """A cell: three significant digits (all those of a whole number), nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        number = float(value)
        if number == 0 or abs(number) >= 100:
            return f"{number:,.0f}"
        return f"{number:.{2 - math.floor(math.log10(abs(number)))}f}"
    return str(value)


def emit(payload: Mapping[str, Any]) -> None:
    """The results as JSON on standard output, for `--json`."""
    sys.stdout.write(json.dumps(_plain(payload, "payload"), indent=1, allow_nan=False) + "\n")


def _headings(columns: Columns) -> tuple[list[str], list[str]]:
    if isinstance(columns, Mapping):
        return list(columns), list(columns.values())
    return list(columns), list(columns)


def _place(file_name: str, *, quick: bool) -> Path:
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / file_name


def _plain(value: Any, where: str) -> Any:
    """`value` in JSON's types, every number finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_plain(part, f"{where}[{n}]") for n, part in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON has no word for")


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else Path(script.name)
    return " ".join(["python", str(shown), *sys.argv[1:]])


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _cpu_model() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _matmul_tflops(dtype: torch.dtype) -> float:
    left = torch.ones(_MATMUL_WIDTH, _MATMUL_WIDTH, dtype=dtype)
    return 2e-12 * _MATMUL_WIDTH**3 / _fastest_s(lambda: left @ left)


def _memory_gb_s() -> float:
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    target = torch.ones_like(source)
    return 2e-9 * _COPY_BYTES / _fastest_s(lambda: target.copy_(source))


def _fastest_s(work: Callable[[], object]) -> float:
    """The fastest of several calls: at least three, or one that takes longer than all should."""
    spent_s, best_s = 0.0, seconds_of(work)  # the first also sets up
    if best_s > _MAX_PROBE_S:
        return best_s
    num_calls = 0
    while num_calls < _MIN_REPEATS or spent_s < _MAX_PROBE_S:
        last_s = seconds_of(work)
        best_s, spent_s, num_calls = min(best_s, last_s), spent_s + last_s, num_calls + 1
    return best_s
