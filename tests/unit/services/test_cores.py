"""Threads by affinity and by the quota of control groups, of both versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cores import usable_cores, wait_asleep

SHOW = """
import os, torch, faiss, pyarrow
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from services.cores import use_cores
print(use_cores(), torch.get_num_threads(), faiss.omp_get_max_threads(), pyarrow.cpu_count())
"""


def cores(folder: Path, membership: str) -> int:
    (folder / "membership").write_text(membership)
    return usable_cores(folder, folder / "membership")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.case("`taskset -c 0 headrace train`, `cpu.max` of one core")
def test_threads_do_not_exceed_the_affinity() -> None:
    answer = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1"] * 4


@pytest.mark.case("`taskset -c 0 headrace train`, `cpu.max` of one core")
@pytest.mark.parametrize("group", ["/", "/kubepods/pod7/main", "/of/another/namespace"])
def test_threads_do_not_exceed_the_quota(group: str, tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "max 100000\n")
    write(tmp_path / "kubepods/pod7/main/cpu.max", "max 100000\n")
    assert cores(tmp_path, f"0::{group}\n") == len(os.sched_getaffinity(0))
    write(tmp_path / "kubepods/pod7/cpu.max", "150000 100000\n")
    write(tmp_path / "cpu.max", "100000 100000\n" if group != "/kubepods/pod7/main" else "max 100000\n")
    assert cores(tmp_path, f"0::{group}\n") == 1


def test_threads_do_not_exceed_the_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    membership = "4:memory:/m\n2:cpu,cpuacct:/docker/1\n0::/\n"
    assert cores(tmp_path, membership) == len(os.sched_getaffinity(0))
    write(tmp_path / "cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    assert cores(tmp_path, membership) == 1


def test_without_control_groups_it_is_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "none") == len(os.sched_getaffinity(0))


def test_threads_wait_asleep_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_importing_a_command_does_not_load_torch_before_that(command: str) -> None:
    code = f"import sys, services.cli.{command}, services.cores; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
