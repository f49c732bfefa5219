"""Less memory for the same work: what two libraries would keep for later, and other processes need now."""

import ctypes
import os
from collections.abc import Callable
from typing import ParamSpec

_Asked = ParamSpec("_Asked")
# oneDNN, which multiplies bf16 for torch, keeps a prepared product for each of the last 1,024 shapes:
# hundreds of megabytes where batches have many (`models.batch.few_sizes`).
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
# A step of training has over a hundred products, whose sizes come back: of 64, most would be prepared again.
TRAINING_PRODUCTS = 256


def keep_few_products(number: int = 64) -> None:
    """Bounds what oneDNN keeps, unless the environment does; to be called before the first product."""
    os.environ.setdefault(_CAPACITY, str(number))


def give_back() -> None:
    """Returns freed pages of this process, in milliseconds; nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def giving_back(callback: Callable[_Asked, None], every: int) -> Callable[_Asked, None]:
    """The same callback, which returns freed pages as well, once in `every` calls.

    Tensors of ever other sizes leave glibc's heap full of holes; on Beauty's training they are half of it.
    """
    num_calls = 0

    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> None:
        nonlocal num_calls
        callback(*args, **kwargs)
        num_calls += 1
        if num_calls % every == 0:
            give_back()

    return called
