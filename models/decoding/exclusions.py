"""What each request must not get, as compiled searches read it: all rows one after the other.

Shapes: B requests, X excluded rows.
"""

from collections.abc import Sequence

import numpy as np

from models.arrays import Int64Array

_NO_ROWS = np.zeros(0, np.int64)


def flat_exclusions(exclude: Sequence[Int64Array] | None, num_requests: int) -> tuple[Int64Array, Int64Array]:
    """The int64 rows [X] of all requests in order, and where each request's end, int64 [B].

    Raises ValueError where there is not one list for each request.
    """
    if exclude is None:
        return _NO_ROWS, np.zeros(num_requests, np.int64)
    if len(exclude) != num_requests:
        raise ValueError(f"{len(exclude)} lists of excluded rows for a batch of {num_requests}")
    if num_requests == 1:
        row_X = np.ascontiguousarray(exclude[0], np.int64)
        return row_X, np.array([len(row_X)])
    end_B = np.cumsum([len(rows) for rows in exclude], dtype=np.int64)
    return np.concatenate([_NO_ROWS, *exclude]), end_B
