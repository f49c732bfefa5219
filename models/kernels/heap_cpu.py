"""A heap of the best so far, on a CPU, compiled: what searches keep while they look at everything.

Shapes: W entries.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled


@compiled
def sift_down(score_W: Float32Array, place_W: Int64Array, size: int, n: int) -> None:
    """Restores the heap below `n`: the root is the entry to give up first, of equal scores the last come."""
    while True:
        least = n
        for child in (2 * n + 1, 2 * n + 2):
            if child < size and (
                score_W[child] < score_W[least]
                or (score_W[child] == score_W[least] and place_W[child] > place_W[least])
            ):
                least = child
        if least == n:
            return
        score_W[n], score_W[least] = score_W[least], score_W[n]
        place_W[n], place_W[least] = place_W[least], place_W[n]
        n = least


@compiled
def put_best(
    score_W: Float32Array, place_W: Int64Array, size: int, score: float | np.float32, place: int
) -> int:
    """Takes one entry more, in place of the first to give up where the heap is full, and returns its size.

    An entry that is no better than the first to give up must not be put into a full heap. It is a heap from
    the moment that it is full.
    """
    if size == len(score_W):
        score_W[0], place_W[0] = score, place
        sift_down(score_W, place_W, size, 0)
        return size
    score_W[size], place_W[size] = score, place
    size += 1
    if size == len(score_W):
        for n in range(size // 2 - 1, -1, -1):
            sift_down(score_W, place_W, size, n)
    return size
