"""The hottest rows, against looking at all of them."""

import numpy as np
import pytest

from models.arrays import Float64Array
from models.ranking.hottest import COLD, Hottest


def slowly(heat_N: Float64Array, k: int) -> list[int]:
    engaged = [row for row in range(len(heat_N)) if heat_N[row] > COLD]
    return sorted(engaged, key=lambda row: (-heat_N[row], row))[:k]


@pytest.mark.parametrize("seed", range(4))
def test_equals_looking_at_all_rows_at_every_moment(seed: int) -> None:
    random = np.random.default_rng(seed)
    heat_N = np.full(200, COLD)
    hottest = Hottest(8)
    for moment in range(600):
        row = int(min(random.zipf(1.2), 200)) - 1
        # whole steps: many rows of one heat
        heat_N[row] = max(heat_N[row], 0.0) + random.integers(0, 3)
        hottest.note(row, heat_N)
        if moment == 300:
            hottest = Hottest(8)
            hottest.begin(heat_N)
        for k in (0, 1, 8, 9, 50, 500):
            assert hottest.best(k, heat_N).tolist() == slowly(heat_N, k)


def test_rows_of_one_heat_are_not_looked_at_again_and_again() -> None:
    heat_N = np.full(1000, COLD)
    begun = 0

    class Counted(Hottest):
        def begin(self, heat_N: Float64Array) -> None:
            nonlocal begun
            begun += 1
            super().begin(heat_N)

    hottest = Counted(4)
    for row in range(1000):
        heat_N[row] = 1.0
        hottest.note(row, heat_N)
    assert begun <= 10
    assert hottest.best(3, heat_N).tolist() == [0, 1, 2]
