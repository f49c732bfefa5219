import numpy as np
import pytest

from models.ranking.aversion import aversion_penalty, standing
from models.sequences.histories import Past
from tests.factories import make_catalogue

_NOTHING = np.empty(0, dtype=np.int64)


def likest(row: int) -> np.ndarray:
    """All rows, from the likest to the least like."""
    content_NE = make_catalogue().content_NE.numpy()
    return np.argsort(-(content_NE @ content_NE[row]), kind="stable")


def test_nothing_turned_down_costs_nothing() -> None:
    catalogue = make_catalogue()
    rows = np.arange(len(catalogue))
    assert not aversion_penalty(catalogue, rows, _NOTHING, rows[:3], 3.0).any()
    assert not aversion_penalty(catalogue, rows, rows[:3], _NOTHING, 0.0).any()
    assert len(aversion_penalty(catalogue, _NOTHING, rows[:3], _NOTHING, 3.0)) == 0


def test_the_likest_lose_most_and_what_is_unlike_nothing() -> None:
    catalogue, order = make_catalogue(), likest(4)
    penalty_M = aversion_penalty(catalogue, order, np.array([4]), _NOTHING, 3.0)
    assert penalty_M[0] == pytest.approx(3.0)
    assert (np.diff(penalty_M) <= 1e-6).all()
    assert penalty_M[-1] == 0.0


def test_more_aversions_cost_more_and_wishes_for_the_same_make_up_for_them() -> None:
    catalogue = make_catalogue()
    row = np.array([4])
    once, thrice = (aversion_penalty(catalogue, row, np.repeat(row, n), _NOTHING, 1.0)[0] for n in (1, 3))
    assert once < thrice == pytest.approx(2.0)
    liked = aversion_penalty(catalogue, row, row, np.repeat(row, 9), 1.0)[0]
    assert liked == pytest.approx(0.1)


def past(*events: tuple[int, int]) -> Past:
    """(row, time) pairs."""
    rows, times = np.array([row for row, _ in events], np.int64), np.array([t for _, t in events], np.int64)
    return Past(rows, np.zeros(len(events), np.int64), times)


def test_a_later_wish_takes_an_aversion_back() -> None:
    averse = past((1, 10), (2, 10), (1, 30), (3, 5))
    assert standing(averse, past()).tolist() == [1, 2, 1, 3]
    assert standing(averse, past((1, 20), (2, 10), (3, 9), (7, 99))).tolist() == [2, 1]
    assert standing(past(), past((1, 20))).tolist() == []
