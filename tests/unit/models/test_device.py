"""The measured number format, and autocast in it."""

import pytest
import torch

from models import device as device_module
from models.device import autocast, compute_dtype

CPU = torch.device("cpu")


def test_the_measured_dtype_is_kept() -> None:
    first = compute_dtype(CPU)
    assert first in (torch.float32, torch.bfloat16)
    assert compute_dtype(CPU) is first


@pytest.mark.parametrize(
    ("bf16_s", "expected"), [(0.5, torch.bfloat16), (1.0, torch.float32), (100.0, torch.float32)]
)
def test_the_faster_dtype_wins(monkeypatch: pytest.MonkeyPatch, bf16_s: float, expected: torch.dtype) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_s}
    monkeypatch.setattr(device_module, "_best_matmul_s", lambda _device, dtype, limit_s: seconds[dtype])
    assert compute_dtype.__wrapped__(CPU) is expected


def test_autocast_changes_products_only_where_it_was_asked() -> None:
    ones = torch.ones(2, 2)
    with autocast(CPU, torch.float32):
        assert (ones @ ones).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
