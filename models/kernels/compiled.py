"""How functions of this package become machine code on a CPU: Numba, once for a machine, kept on disk."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function as machine code; it runs without the interpreter's lock."""
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def compiled_fast(function: _Function) -> _Function:
    """`compiled`, with sums in the order that vector units like best, and divisions that do not look for a
    zero first: a loop with a branch is not vectorised."""
    compile_it = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
    return cast(_Function, compile_it(function))
