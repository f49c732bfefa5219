"""Dropout by bytes: its rate, its independence, and where gradients pass; what positions see in attention."""

import pytest
import torch

from models.networks.blocks import Attention, ByteDropout


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


def test_in_bfloat16_training_sees_what_serving_sees():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 16, dtype=torch.bfloat16).unbind(0)
    bias_HTT = torch.zeros(4, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    attention = Attention(64, 4)
    served = attention.look(q, k, v, bias_HTT)
    trained = attention.look(q.requires_grad_(), k, v, bias_HTT)
    torch.testing.assert_close(trained, served, atol=0.02, rtol=0.02)


def test_a_position_that_is_alone_sees_itself():
    attention = Attention(64, 4)
    q, k, v = attention.project(torch.randn(3, 1, 64))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.look(q, k, v, torch.zeros(4, 1, 1)), expected)
