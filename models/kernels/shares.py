"""A batch shared among threads: for compiled calls that let go of the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def in_shares(work: Callable[[int, int], _Result], num: int, min_share: int) -> list[_Result]:
    """What `work(begin, end)` returns for the parts of 0 to `num`, in order: one part for each thread that
    torch may use and that has `min_share` to do, one at least."""
    num_shares = min(torch.get_num_threads(), num // min_share)
    if num_shares < 2:
        return [work(0, num)]
    ends = [num * share // num_shares for share in range(num_shares + 1)]
    with ThreadPoolExecutor(num_shares) as threads:
        return list(threads.map(work, ends, ends[1:]))
