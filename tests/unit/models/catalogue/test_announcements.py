"""Announcements in order of time, against sorting all of them."""

import numpy as np
import pytest

from models.catalogue.announcements import Announcements


def slowly(announced_ms_N: np.ndarray, after_ms: int, until_ms: int, k: int) -> list[int]:
    rows = [n for n, time_ms in enumerate(announced_ms_N) if time_ms > 0 and after_ms < time_ms <= until_ms]
    return sorted(rows, key=lambda row: (-announced_ms_N[row], -row))[:k]


@pytest.mark.parametrize("seed", range(3))
def test_the_newest_are_those_of_sorting_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    announced_ms_N = np.zeros(80, np.int64)
    announced_ms_N[:20] = random.integers(0, 12, 20)
    announcements = Announcements(announced_ms_N[:20])
    for row in random.permutation(np.arange(20, 80)).tolist():
        announced_ms_N[row] = random.integers(-1, 12)
        announcements.add(row, int(announced_ms_N[row]))
        after_ms, until_ms = random.integers(0, 13, 2).tolist()
        for k in (0, 3, 99):
            found = announcements.newest(after_ms, until_ms, k).tolist()
            assert found == slowly(announced_ms_N, after_ms, until_ms, k)
        known = announced_ms_N[(announced_ms_N > 0) & (announced_ms_N <= until_ms)]
        assert announcements.newest_ms(until_ms) == known.max(initial=0)
