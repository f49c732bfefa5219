"""The compiled layers beside torch's."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.kernels.layers_cpu import linear, normalised


@pytest.mark.parametrize(
    ("num_rows", "inputs", "outputs"),
    [(0, 4, 3), (1, 300, 300), (50, 256, 256), (7, 1_024, 512), (600, 8, 5)],
)
def test_a_linear_layer_is_that_of_torch(num_rows: int, inputs: int, outputs: int) -> None:
    x_QI, weight_IO = torch.randn(num_rows, inputs), torch.randn(inputs, outputs)
    bias_O = torch.randn(outputs)
    found_QO = linear(x_QI.numpy(), weight_IO.numpy(), bias_O.numpy())
    np.testing.assert_allclose(found_QO, (x_QI @ weight_IO + bias_O).numpy(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("width", [1, 7, 256])
def test_norm_is_that_of_torch(width: int) -> None:
    x_QD = torch.randn(5, width) * torch.tensor([1.0, 1e-3, 100.0, 0.0, 1.0])[:, None] + 3
    expected_QD = functional.layer_norm(x_QD, (width,))
    np.testing.assert_allclose(normalised(x_QD.numpy()), expected_QD.numpy(), atol=2e-3, rtol=1e-4)
