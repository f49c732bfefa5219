"""Every kernel compiles for both architectures, and nothing needs Triton that does not launch a kernel.

Compiling is done in a process of its own: in this one kernels are interpreted (`tests/conftest.py`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.compilation import compile as compile_kernels

ROOT = Path(__file__).parents[4]
MAX_SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # of a block, CUDA programming guide
MAX_REGISTERS = 255
MAX_SPILLED_BYTES = 128


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def report() -> dict:
    result = run_python("-m", "models.compilation.compile", "--json", "--dtype", "bfloat16")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_all_kernels_are_assembled_and_fit_the_machine(report: dict, arch: str) -> None:
    rows = [row for row in report["rows"] if row["arch"] == arch]
    assert {row["kernel"] for row in rows} == {
        "beam_step/children", "beam_step/root", "embed_items",
        "hstu_forward", "hstu_backward_queries", "hstu_backward_keys",
    }  # fmt: skip
    for row in rows:
        assert row["ptx_lines"] > 0
        assert row["cubin_bytes"] > 0
        assert 0 < row["registers"] <= MAX_REGISTERS
        assert row["shared_bytes"] <= MAX_SHARED_BYTES[arch]
        assert max(row["spill_store_bytes"], row["spill_load_bytes"]) <= MAX_SPILLED_BYTES


def test_the_report_says_that_nothing_ran(report: dict) -> None:
    assert report["ran_on_a_gpu"] is False
    assert report["triton"]
    assert report["assemblers"]["ptxas"]


def test_an_interpreting_process_refuses_to_compile() -> None:
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        compile_kernels.main([])


class _WheelWithoutAssemblers:
    """`knobs.nvidia` where nothing is bundled: a path must be set first."""

    def __getattr__(self, name: str) -> SimpleNamespace:
        raise RuntimeError(f"Cannot find {name}")

    def __setattr__(self, name: str, path: str) -> None:
        self.__dict__[name] = SimpleNamespace(path=path, version="13.0")


def test_an_assembler_on_path_does_where_the_wheel_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = _WheelWithoutAssemblers()
    monkeypatch.setattr(compile_kernels, "knobs", SimpleNamespace(nvidia=wheel))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(compile_kernels.NoAssembler, match=r"no ptxas .*nvidia-cuda-nvcc"):
        compile_kernels.find_assemblers()
    (tmp_path / "ptxas").touch(mode=0o755)
    assert compile_kernels.find_assemblers() == {"ptxas": "13.0", "ptxas_blackwell": "13.0"}
    assert wheel.ptxas.path == str(tmp_path / "ptxas")


def test_a_cpu_needs_no_triton() -> None:
    program = (
        "import sys\n"
        "sys.modules['triton'] = None  # importing it fails\n"
        "import torch\n"
        "from models.kernels import hstu_attention, item_embedding\n"
        "from models.kernels.beam_step import Children, beam_step\n"
        "one = torch.tensor([0, 1])\n"
        "edges = Children(offset_P1=one, code_R=one[:1], child_R=one[:1], live_N=one[1:], max_children=1)\n"
        "step = beam_step(torch.zeros(1, 1, 2), torch.zeros(1, 1), one[None, :1], edges, width=1)\n"
        "assert step.child_BW.tolist() == [[0]]\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
