"""Small sets of rows, against Python's own."""

import numpy as np
import pytest

from models.kernels.row_products import products_of_rows
from models.kernels.row_sets import open_positions, summed_by_row, union


@pytest.mark.parametrize("seed", range(4))
def test_what_is_open_is_found_once_in_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    available_N = random.random(300) < 0.8
    row_X = random.integers(-3, 320, 500)
    exclude_E = random.integers(-2, 400, 40)
    seen, expected = set(exclude_E.tolist()), []
    for x, row in enumerate(row_X.tolist()):
        if 0 <= row < 300 and available_N[row] and row not in seen:
            seen.add(row)
            expected.append(x)
    assert open_positions(row_X, available_N, exclude_E).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_union_has_all_sources_and_the_first_scores(seed: int) -> None:
    random = np.random.default_rng(seed)
    row_X, source_X = random.integers(0, 60, 200) * 2**20, 1 << random.integers(1, 7, 200)
    beam_X, dense_X = np.where(random.random((2, 200)) < 0.5, np.nan, random.random((2, 200))).astype("f4")
    row_U, source_U, beam_U, dense_U = union(row_X, source_X, beam_X, dense_X)
    assert row_U.tolist() == list(dict.fromkeys(row_X.tolist()))
    for u, row in enumerate(row_U):
        same_X = row_X == row
        assert source_U[u] == np.bitwise_or.reduce(source_X[same_X])
        for score_U, score_X in ((beam_U, beam_X), (dense_U, dense_X)):
            known = score_X[same_X & ~np.isnan(score_X)]
            np.testing.assert_equal(score_U[u], known[0] if len(known) else np.float32(np.nan))


def test_shares_are_summed_by_row() -> None:
    neighbour_RJ = np.array([[5, 7, -1], [7, 9, 5]])
    share_RJ = np.array([[0.5, 0.25, 0.0], [0.5, 0.0, 1.0]])
    row_U, sum_U = summed_by_row(neighbour_RJ, share_RJ)
    assert dict(zip(row_U.tolist(), sum_U.tolist(), strict=True)) == {5: 1.5, 7: 0.75}


def test_products_of_rows_are_those_of_their_copies() -> None:
    random = np.random.default_rng(0)
    content_NE = random.random((30, 17), dtype=np.float32)
    row_R, row_M = np.array([3, 3, 29]), np.array([0, 29, 5, 3])
    expected_RM = content_NE[row_R] @ content_NE[row_M].T
    np.testing.assert_allclose(products_of_rows(content_NE, row_R, row_M), expected_RM, rtol=1e-6)
