"""Which number format this machine computes fastest in; measured once, never assumed.

It knows nothing of any model. A CPU with bf16 units multiplies bf16 several times faster than fp32,
one without is a hundred times slower at it, and no public API tells the two apart.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

_PROBE_SIZE = 384
_NUM_PROBES = 20
# this many slow products are enough: on a busy machine a single one may only have been interrupted
_MIN_PROBES = 4


@cache
def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where a matrix product was measured to be faster in it than in float32, else float32.

    The first call for a device takes some tens of milliseconds (on a CPU without bf16 units, some tenths of
    a second); the answer is kept for the life of the process.
    """
    fp32_s = _best_matmul_s(device, torch.float32, limit_s=float("inf"))
    bf16_s = _best_matmul_s(device, torch.bfloat16, limit_s=fp32_s)
    return torch.bfloat16 if bf16_s < fp32_s else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Runs matrix products of its block in `dtype`; nothing changes where that is float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def _best_matmul_s(device: torch.device, dtype: torch.dtype, limit_s: float) -> float:
    """Seconds of the fastest product; gives up early where the fastest took over three times `limit_s`."""
    left = torch.ones(_PROBE_SIZE, _PROBE_SIZE, device=device, dtype=dtype)
    best_s = float("inf")
    left @ left  # the first product of a kind also sets up its kernel
    for probe in range(_NUM_PROBES):
        _synchronise(device)
        begin_s = time.perf_counter()
        left @ left
        _synchronise(device)
        best_s = min(best_s, time.perf_counter() - begin_s)
        if probe + 1 >= _MIN_PROBES and best_s > 3 * limit_s:
            break
    return best_s


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
