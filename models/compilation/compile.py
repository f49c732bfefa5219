"""Compiles every kernel to PTX and to machine code, without a GPU, and reports what each one needs.

Owns the report; `models/compilation/variants.py` says what is compiled. Says nothing about speed: nothing
runs.

    python -m models.compilation.compile [--json] [--output FILE] [--dtype bfloat16]

In a process of its own, because Triton decides when it is imported whether kernels are compiled or
interpreted.
"""

import argparse
import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.compilation.variants import DTYPES, Variant, all_variants
from models.decoding.config import SearchConfig
from models.networks.config import ModelConfig

COMPUTE_CAPABILITIES = (80, 90)
WARP_SIZE = 32
POINTER_ALIGNMENT = 16  # of every tensor that torch allocates
ASSEMBLERS = {"ptxas": "TRITON_PTXAS_PATH", "ptxas_blackwell": "TRITON_PTXAS_BLACKWELL_PATH"}

Row = dict[str, str | int]


class NoAssembler(RuntimeError):
    """There is no ptxas: neither in the Triton wheel nor on PATH."""


def find_assemblers() -> dict[str, str]:
    """Version of each assembler that Triton uses; one it does not bring is taken from PATH."""
    versions = {}
    for name, variable in ASSEMBLERS.items():
        try:
            tool = getattr(knobs.nvidia, name)
        except RuntimeError:
            on_path = shutil.which("ptxas")
            if on_path is None:
                raise NoAssembler(
                    f"no {name} in the Triton wheel, no ptxas on PATH: install one (nvidia-cuda-nvcc has it) "
                    f"or set {variable}"
                ) from None
            setattr(knobs.nvidia, name, on_path)
            tool = getattr(knobs.nvidia, name)
        versions[name] = str(tool.version)
    return versions


@contextlib.contextmanager
def _fresh_compilation() -> Iterator[io.StringIO]:
    """No cache, and the assembler's log in what it gives."""
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = cache
        knobs.nvidia.dump_ptxas_log = True
        with contextlib.redirect_stdout(log):
            yield log


def compile_variant(variant: Variant, capability: int) -> Row:
    """One row of the report; raises what Triton and the assembler raise."""
    names = variant.kernel.arg_names
    types = {
        name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names
    }
    aligned = {
        (place,): [["tt.divisibility", POINTER_ALIGNMENT]]
        for place, name in enumerate(names)
        if types[name].startswith("*")
    }
    source = ASTSource(variant.kernel, types, dict(variant.constants), aligned)
    with _fresh_compilation() as log:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", capability, WARP_SIZE),
            options={"num_warps": variant.num_warps, "enable_fp_fusion": True},  # as launched
        )
    return {
        "kernel": variant.name,
        "sizes": variant.what,
        "arch": f"sm_{capability}",
        "dtype": variant.dtype,
        "num_warps": variant.num_warps,
        **_resources(log.getvalue()),
        "shared_bytes": int(compiled.metadata.shared),
        "ptx_lines": compiled.asm["ptx"].count("\n"),
        "cubin_bytes": len(compiled.asm["cubin"]),
    }


def _resources(log: str) -> dict[str, int]:
    """Registers of a thread and bytes that it spills, from `ptxas -v`."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "spill_store_bytes": r"(\d+) bytes spill stores",
        "spill_load_bytes": r"(\d+) bytes spill loads",
    }
    found = {name: re.search(pattern, log) for name, pattern in patterns.items()}
    if None in found.values():
        raise ValueError(f"the assembler's log has no figures: {log!r}")
    return {name: int(match[1]) for name, match in found.items() if match}


def report(variants: list[Variant], *, console: Console) -> dict[str, Any]:
    """All variants for all architectures, with the versions of what compiled them; raises NoAssembler."""
    assemblers = find_assemblers()
    pairs = [(variant, capability) for capability in COMPUTE_CAPABILITIES for variant in variants]
    rows = [compile_variant(*pair) for pair in track(pairs, "compiling", console=console, transient=True)]
    return {"triton": triton.__version__, "assemblers": assemblers, "ran_on_a_gpu": False, "rows": rows}


def _table(rows: list[Row]) -> Table:
    table = Table(title="Kernels, compiled and not run (bytes; spills are stores + loads)")
    table.add_column("kernel", no_wrap=True)
    for column in ("arch", "dtype", "registers", "spills", "shared", "PTX lines", "cubin"):
        table.add_column(column, justify="right")
    for row in rows:
        spills = int(row["spill_store_bytes"]) + int(row["spill_load_bytes"])
        figures = (row["registers"], spills, row["shared_bytes"], row["ptx_lines"], row["cubin_bytes"])
        table.add_row(str(row["kernel"]), str(row["arch"]), str(row["dtype"]), *map(str, figures))
    return table


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="the report as JSON on standard output, no table")
    parser.add_argument("--output", type=Path, help="also write the report, as JSON, to this file")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only these number formats")
    options = parser.parse_args(arguments)
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set: kernels are interpreted, not compiled, in this process")
    variants = all_variants(ModelConfig(), SearchConfig(), options.dtype or DTYPES)
    try:
        found = report(variants, console=Console(stderr=True))
    except NoAssembler as error:
        sys.exit(str(error))
    written = json.dumps(found, indent=2) + "\n"
    if options.json:
        sys.stdout.write(written)
    else:
        Console().print(_table(found["rows"]))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(written)


if __name__ == "__main__":
    main()
