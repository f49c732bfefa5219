"""Dropout by bytes: its rate, its independence, and where gradients pass."""

import pytest
import torch

from models.networks.blocks import ByteDropout


def test_dropout_keeps_the_mean_and_the_rate():
    torch.manual_seed(0)
    dropout = ByteDropout(0.25)
    out = dropout(torch.ones(1001, 101))
    assert out.unique().tolist() == pytest.approx([0.0, 256 / 192])
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(dropout.eval()(out), out)


def test_dropout_is_independent_between_the_bytes_of_a_word():
    torch.manual_seed(0)
    dropped = (ByteDropout(0.5)(torch.ones(20_000, 8)) == 0).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlation.abs().max() < 0.05
    assert (dropped.mean(0) - 0.5).abs().max() < 0.02


def test_gradients_flow_through_the_kept_elements_only():
    torch.manual_seed(0)
    x = torch.ones(64, requires_grad=True)
    out = ByteDropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
