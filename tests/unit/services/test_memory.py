"""What is given back, and how often."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services import memory


def test_the_environment_decides_before_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}
    monkeypatch.setattr(os, "environ", environment)
    memory.keep_few_products()
    assert environment == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7", "LRU_CACHE_CAPACITY": "16"}


@pytest.mark.parametrize("said", ["", "abc", "0", "-1", "1.5", 5_000 * "9"])
def test_what_torch_would_die_of_is_replaced(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    environment = {"LRU_CACHE_CAPACITY": said}
    monkeypatch.setattr(os, "environ", environment)
    memory.keep_few_products()
    assert environment["LRU_CACHE_CAPACITY"] == "16"


_PRODUCTS = """
import sys
import torch
from services import memory

if sys.argv[1] == "few":
    memory.keep_few_products()  # torch is there already, as in a process forked from the template
torch.set_num_threads(1)
weight = torch.zeros(256, 64, dtype=torch.bfloat16)


def kilobytes():
    memory.give_back()
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def multiply(sizes):
    with torch.no_grad():
        for size in sizes:
            torch.nn.functional.linear(torch.zeros(size, 64, dtype=torch.bfloat16), weight)


multiply(range(100, 4000, 13))
print(kilobytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_many_shapes_leave_little_behind() -> None:
    all_kilobytes, few_kilobytes = (
        int(subprocess.run([sys.executable, "-c", _PRODUCTS, kind], capture_output=True, check=True).stdout)
        for kind in ("all", "few")
    )
    # where no bf16 instructions are, oneDNN prepares nothing: then both are alike
    assert few_kilobytes < all_kilobytes + 10_000
    has_bf16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert few_kilobytes < all_kilobytes - 20_000 or not has_bf16


_HOLES = """
import ctypes
from services import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
# glibc takes the largest block that was freed for one that comes again, and keeps such on its heap
libc.free(ctypes.c_void_p(libc.malloc(16 << 20)))
{call}

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

blocks = [bytearray(b"x") * (5 << 20) for _ in range(20)]
full = resident_mb()
del blocks[::2]
print(full - resident_mb())
"""


@pytest.mark.parametrize(
    ("call", "freed_mb"), [("memory.return_large_at_once()", 50), ("", 0)], ids=["at once", "by default"]
)
def test_what_is_large_goes_back_as_soon_as_it_is_freed(call: str, freed_mb: int) -> None:
    script = _HOLES.format(call=call)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) == pytest.approx(freed_mb, abs=3)
