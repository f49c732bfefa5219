"""exp and GELU as polynomials, against the exact ones over their whole range."""

import numpy as np
import torch
from torch.nn import functional

from models.kernels.vector_math import exp_of_negative, gelu


def test_gelu_is_the_exact_one() -> None:
    x_RM = np.linspace(-12, 12, 240_000, dtype=np.float32).reshape(100, -1)
    x_RM[0, :4] = [0.0, -0.0, 1e30, -1e30]
    found_RM = x_RM.copy()
    gelu(found_RM)
    expected_RM = functional.gelu(torch.from_numpy(x_RM).double()).numpy()
    np.testing.assert_allclose(found_RM, expected_RM, atol=1e-6, rtol=2e-7)
    np.testing.assert_array_equal(found_RM[0, :4], np.float32([0, 0, 1e30, 0]))


def test_exp_is_the_exact_one_down_to_where_nothing_is_left() -> None:
    x_RM = -np.linspace(0, 87, 240_000, dtype=np.float32).reshape(100, -1)
    found_RM = x_RM.copy()
    exp_of_negative(found_RM)
    np.testing.assert_allclose(found_RM, np.exp(x_RM.astype(np.float64)), rtol=2e-7)
    edge_RM = np.float32([[0.0, -200.0, -np.inf, np.nan]])
    exp_of_negative(edge_RM)
    assert edge_RM[0, 0] == 1.0
    assert (edge_RM[0, 1:3] < 1e-37).all()
    assert np.isnan(edge_RM[0, 3])
