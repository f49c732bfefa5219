"""How functions become machine code on a CPU: Numba, once for a machine, kept on disk.

Numba looks at the time of a function's own file alone when it asks whether what it kept is still right. What
one function calls may stand in another file, so all of it is kept under a digest of all of them.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])

_MODELS = Path(__file__).parents[1]
_BESIDE_SOURCES = Path(__file__).parent / "__pycache__"
_FAST: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract"}}
_IMPORTED = b"from models.kernels.compiled import"


def cache_name() -> str:
    """What the present sources' machine code is kept under: another one after any of them changed."""
    sources = sorted(path for path in _MODELS.rglob("*.py") if _IMPORTED in path.read_bytes())
    digest = hashlib.blake2b(digest_size=8)
    for path in sources:
        digest.update(path.read_bytes())
    return f"numba-{digest.hexdigest()}"


def forget_other_sources() -> None:
    """Removes what was kept of other sources than the present ones, from beside the sources alone."""
    for folder in _BESIDE_SOURCES.glob("numba-*"):
        if folder.name != cache_name():
            shutil.rmtree(folder, ignore_errors=True)


def compiled(function: _Function) -> _Function:
    """The function as machine code."""
    return cast(_Function, numba.njit(cache=True)(function))


def compiled_fast(function: _Function) -> _Function:
    """`compiled`, with sums in the order that vector units like best, and divisions that do not look for a
    zero first: a loop with a branch is not vectorised."""
    return cast(_Function, numba.njit(cache=True, **_FAST)(function))


def compiled_unlocked(function: _Function) -> _Function:
    """`compiled`, and while it runs other threads may run Python.

    For calls of a third of a millisecond and more: whoever lets go of the interpreter's lock may wait for it
    afterwards, up to the interpreter's switch interval, and does so whenever a busy thread is beside it.
    """
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def compiled_fast_unlocked(function: _Function) -> _Function:
    """`compiled_fast`, as `compiled_unlocked`."""
    return cast(_Function, numba.njit(cache=True, nogil=True, **_FAST)(function))


# read when a function is declared, which is after this module was imported
_folder = Path(getattr(numba.config, "CACHE_DIR", "") or _BESIDE_SOURCES) / cache_name()
numba.config.CACHE_DIR = str(_folder)  # type: ignore[attr-defined]
