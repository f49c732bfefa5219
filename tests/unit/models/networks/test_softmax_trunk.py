"""What is particular to the softmax trunk; the rest is the contract of every trunk."""

import torch

from models.networks.softmax_trunk import SoftmaxTrunk


def test_times_are_left_unread():
    torch.manual_seed(0)
    trunk = SoftmaxTrunk(32, 2, 4, 0.2).eval()
    x, length = torch.randn(2, 7, 32), torch.tensor([7, 3])
    early, late = torch.zeros(2, 7, dtype=torch.int64), torch.randint(0, 10**12, (2, 7))
    assert torch.equal(trunk(x, length, early), trunk(x, length, late))
