import pytest
import torch

from models.trunk import ByteDropout, Trunk


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(32, 2, 4, 0.2).eval()


def test_a_state_depends_on_the_past_only(trunk):
    x = torch.randn(2, 7, 32)
    changed = x.clone()
    changed[:, 4:] = torch.randn(2, 3, 32)
    length = torch.tensor([7, 7])
    before, after = trunk(x, length), trunk(changed, length)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_is_zero_and_has_no_influence(trunk):
    x = torch.randn(2, 7, 32)
    alone = trunk(x[:1, :3], torch.tensor([3]))
    padded = trunk(x, torch.tensor([3, 7]))
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert not padded[0, 3:].any()


def test_order_matters(trunk):
    x = torch.randn(1, 5, 32)
    swapped = x[:, [1, 0, 2, 3, 4]]
    length = torch.tensor([5])
    assert not torch.allclose(trunk(x, length)[:, -1], trunk(swapped, length)[:, -1], atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 3, 0)])
def test_a_candidate_is_scored_as_if_it_alone_came_next(trunk, lengths):
    x, candidates = torch.randn(3, 6, 32), torch.randn(3, 4, 32)
    out = trunk.forward_candidates(x, torch.tensor(lengths), candidates)
    for b, length in enumerate(lengths):
        for m in range(4):
            appended = torch.cat([x[b, :length], candidates[b, m : m + 1]])[None]
            expected = trunk(appended, torch.tensor([length + 1]))[0, -1]
            torch.testing.assert_close(out[b, m], expected, atol=1e-5, rtol=1e-4)


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
