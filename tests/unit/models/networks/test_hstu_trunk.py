"""What is particular to HSTU: its formula, its two biases; the rest is the contract of every trunk."""

import pytest
import torch

from models.kernels.hstu_formula import NUM_TIME_BUCKETS, hstu_attention, time_bucket
from models.networks.config import ModelConfig
from models.networks.hstu_trunk import HstuTrunk

DAY_MS = 86_400_000


@pytest.fixture
def trunk() -> HstuTrunk:
    """With biases of the size of the scores, so that a wrong one shows."""
    torch.manual_seed(0)
    trunk = HstuTrunk(32, 3, 4, 0.2).eval()
    torch.nn.init.normal_(trunk.bias.position_table)
    torch.nn.init.normal_(trunk.bias.time_table)
    return trunk


def make_times(batch: int, width: int) -> torch.Tensor:
    gaps = (2.0 ** (torch.rand(batch, width) * 36)).long()
    return gaps.cumsum(1) + 1_700_000_000_000


def test_attention_is_the_written_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    bias, mask = torch.randn(2, 3, 4, 6), torch.rand(2, 1, 4, 6) < 0.5
    mask[0, 0, 1] = False
    out = hstu_attention(q, k, v, bias, mask)
    for b in range(2):
        for h in range(3):
            for i in range(4):
                seen = mask[b, 0, i].nonzero()[:, 0].tolist()
                total = torch.zeros(5)
                for j in seen:
                    score = q[b, h, i] @ k[b, h, j] + bias[b, h, i, j]
                    total += score * torch.sigmoid(score) * v[b, h, j]
                torch.testing.assert_close(out[b, h, i], total / max(1, len(seen)), atol=1e-5, rtol=1e-4)


def test_the_example_of_the_docstring():
    q, k = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    out = hstu_attention(
        q[None, None], k[None, None], torch.eye(2)[None, None], torch.tensor([[1.0, 0], [0, 0]]),
        torch.ones(2, 2).tril().bool(),
    )  # fmt: skip
    assert out[0, 0].flatten().tolist() == pytest.approx([0.7311, 0.0, 0.0, 0.8808], abs=1e-4)


def test_a_time_bucket_is_the_number_of_binary_digits():
    elapsed = [-5, 0, 1, 2, 3, 4, 7, 8, DAY_MS, 365 * DAY_MS, 2**50]
    assert time_bucket(torch.tensor(elapsed)).tolist() == [
        0,
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        27,
        35,
        NUM_TIME_BUCKETS - 1,
    ]
    doubling = torch.tensor([2**n for n in range(46)])
    assert time_bucket(doubling).tolist() == [n + 1 for n in range(46)]
    assert time_bucket(doubling[1:] - 1).tolist() == list(range(1, 46))


def test_elapsed_time_matters_and_the_date_does_not(trunk):
    x, times, length = torch.randn(1, 5, 32), make_times(1, 5), torch.tensor([5])
    state = trunk(x, length, times)
    slower = times.clone()
    slower[:, -1] += 8_000 * DAY_MS
    assert not torch.allclose(state[:, -1], trunk(x, length, slower)[:, -1], atol=1e-4)
    assert torch.equal(state, trunk(x, length, times + 1_000 * DAY_MS))


def test_gradients_reach_both_bias_tables_of_every_layer(trunk):
    x, times = torch.randn(2, 6, 32), make_times(2, 6)
    trunk(x, torch.tensor([6, 6]), times).square().sum().backward()
    for table in (trunk.bias.position_table, trunk.bias.time_table):
        per_head = table.grad.abs().sum(0)
        assert per_head.shape == (12,)
        assert (per_head > 0).all()
    assert not trunk.bias.position_table.grad[6:].any()


def test_the_trunk_of_a_configuration_is_one_that_exists():
    assert ModelConfig(trunk="hstu").trunk == "hstu"
    with pytest.raises(ValueError, match="trunk must be one of softmax, hstu"):
        ModelConfig(trunk="lstm")
