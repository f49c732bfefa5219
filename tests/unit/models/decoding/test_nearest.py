"""The nearest vectors are the exact ones, whatever the table looks like."""

import numpy as np
import pytest
import torch

from models.decoding.nearest import NearestIndex


def index_of(vector_ND: torch.Tensor) -> NearestIndex:
    index = NearestIndex(vector_ND.shape[1])
    index.put(0, vector_ND)
    return index


def products(query_D: torch.Tensor, vector_ND: torch.Tensor) -> np.ndarray:
    return (vector_ND.double() @ query_D.double()).numpy()


@pytest.mark.parametrize("kind", ["directions", "close", "twins", "scales", "zeros"])
@pytest.mark.parametrize(("num_rows", "width", "k"), [(1, 4, 3), (50, 3, 5), (3_000, 16, 7), (3_000, 64, 50)])
def test_no_row_outside_the_result_has_a_higher_product(kind: str, num_rows: int, width: int, k: int) -> None:
    torch.manual_seed(num_rows + width)
    vector_ND = torch.randn(num_rows, width)
    if kind == "close":
        vector_ND = torch.ones(num_rows, width) + 1e-3 * vector_ND
    elif kind == "twins":
        vector_ND = vector_ND[torch.arange(num_rows) % max(1, num_rows // 40)]
    elif kind == "scales":
        vector_ND = vector_ND * torch.logspace(-6, 6, num_rows)[:, None]
    elif kind == "zeros":
        vector_ND = vector_ND * (torch.rand(num_rows, 1) < 0.1)
    query_BD = torch.randn(4, width) * torch.tensor([1.0, 100.0, 1e-3, 0.0])[:, None]
    random = np.random.default_rng(0)
    allowed_N = random.random(num_rows) < 0.8
    exclude = [random.integers(-1, num_rows, size) for size in (0, 1, 20, 20)]
    found = index_of(vector_ND).search(
        query_BD.numpy(), vector_ND.numpy(), k, allowed_N=allowed_N, exclude=exclude
    )
    for query_D, rows, (row_K, product_K) in zip(query_BD, exclude, found, strict=True):
        open_N = allowed_N.copy()
        open_N[rows[rows >= 0]] = False
        assert len(row_K) == len(set(row_K.tolist())) == min(k, open_N.sum())
        assert open_N[row_K].all()
        true_N = products(query_D, vector_ND)
        slack = 1e-5 * float(query_D.norm()) * vector_ND.norm(dim=1).numpy()
        assert (np.abs(product_K - true_N[row_K]) <= slack[row_K]).all()
        assert (np.diff(product_K) <= 0).all()
        equal = np.nonzero(np.diff(product_K) == 0)[0]
        assert (row_K[equal] < row_K[equal + 1]).all()
        outside_N = open_N.copy()
        outside_N[row_K] = False
        if outside_N.any():
            assert (true_N[outside_N] <= product_K[-1] + slack[outside_N] + slack[row_K[-1]]).all()


def test_a_result_does_not_depend_on_the_other_queries() -> None:
    torch.manual_seed(0)
    vector_ND, query_BD = torch.randn(500, 32), torch.randn(9, 32)
    index, allowed_N = index_of(vector_ND), np.ones(500, np.bool_)
    together = index.search(query_BD.numpy(), vector_ND.numpy(), 10, allowed_N=allowed_N)
    for b, (row_K, product_K) in enumerate(together):
        ((row_alone_K, product_alone_K),) = index.search(
            query_BD[b : b + 1].numpy(), vector_ND.numpy(), 10, allowed_N=allowed_N
        )
        np.testing.assert_array_equal(row_K, row_alone_K)
        np.testing.assert_array_equal(product_K, product_alone_K)


def test_rows_are_added_and_replaced() -> None:
    torch.manual_seed(0)
    vector_ND = torch.randn(300, 8)
    index = NearestIndex(8)
    for begin in range(0, 300, 7):
        index.put(begin, vector_ND[begin : begin + 7])
    assert len(index) == 300
    vector_ND[123] = 10 * torch.ones(8)
    index.put(123, vector_ND[123:124])
    assert len(index) == 300
    ((row_K, _),) = index.search(
        np.ones((1, 8), np.float32), vector_ND.numpy(), 3, allowed_N=np.ones(300, np.bool_)
    )
    assert row_K.tolist() == vector_ND.sum(1).topk(3).indices.tolist()
    with pytest.raises(IndexError, match="after 300 rows"):
        index.put(301, vector_ND[:1])


def test_k_is_checked() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="at least 1"):
        index_of(torch.eye(3)).search(eye, eye, 0, allowed_N=np.ones(3, np.bool_))
