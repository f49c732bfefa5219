"""Less memory for the same work: what two libraries would keep for later, and other processes need now."""

import ctypes
import os

# oneDNN, which multiplies bf16 for torch, keeps a prepared product for each of the last 1,024 shapes, and
# torch as many in a cache of its own, a quarter of a megabyte each: hundreds of megabytes where batches have
# many shapes (`models.batch.few_sizes`). A step of training has over a hundred, whose shapes come back:
# oneDNN should know them, and then torch need not.
_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "16"}
_MAX_DIGITS = 10
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # malloc.h


def keep_few_products() -> None:
    """Bounds what oneDNN and torch keep, unless the environment does; call it before the first product.

    A value that is no whole number above zero is replaced: torch would end the process at its first product.
    """
    for name, number in _KEPT.items():
        said = os.environ.get(name, "")
        if not (said.isascii() and said.isdigit() and len(said) < _MAX_DIGITS and int(said)):
            os.environ[name] = number


def give_back() -> None:
    """Returns freed pages of this process, in milliseconds; nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_large_at_once() -> None:
    """From now on, what takes 4 MiB or more goes back to the system as soon as it is freed.

    Tensors of ever other sizes leave glibc's heap full of holes otherwise. From 512 KiB on it would be less
    still, at a sixth more time for ever new pages.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_M_MMAP_THRESHOLD, _LARGE_BYTES)
