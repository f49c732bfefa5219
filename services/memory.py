"""Less memory for the same work: what two libraries would keep for later, and other processes need now."""

import ctypes
import os

# oneDNN, which multiplies bf16 for torch, keeps a prepared product for each of the last 1,024 shapes:
# hundreds of megabytes where batches have many (`models.batch.few_sizes`).
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
# A step of training has over a hundred products, whose sizes come back: of 64, most would be prepared again.
TRAINING_PRODUCTS = 256
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # malloc.h


def keep_few_products(number: int = 64) -> None:
    """Bounds what oneDNN keeps, unless the environment does; to be called before the first product."""
    os.environ.setdefault(_CAPACITY, str(number))


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
