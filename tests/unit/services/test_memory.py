"""What is given back, and how often."""

import os
import subprocess
import sys

import pytest

from services import memory


def test_the_environment_decides_before_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    memory.keep_few_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    memory.keep_few_products(memory.TRAINING_PRODUCTS)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "256"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    memory.keep_few_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


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
