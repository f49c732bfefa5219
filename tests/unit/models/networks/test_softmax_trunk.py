import pytest
import torch

from models.networks.blocks import ByteDropout
from models.networks.softmax_trunk import SoftmaxTrunk
from models.networks.trunk_cache import TrunkCache


@pytest.fixture
def trunk() -> SoftmaxTrunk:
    torch.manual_seed(0)
    return SoftmaxTrunk(32, 2, 4, 0.2).eval()


def run(trunk: SoftmaxTrunk, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    return trunk(x, length, torch.zeros(x.shape[:2], dtype=torch.int64))


def test_a_state_depends_on_the_past_only(trunk):
    x = torch.randn(2, 7, 32)
    changed = x.clone()
    changed[:, 4:] = torch.randn(2, 3, 32)
    length = torch.tensor([7, 7])
    before, after = run(trunk, x, length), run(trunk, changed, length)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_is_zero_and_has_no_influence(trunk):
    x = torch.randn(2, 7, 32)
    alone = run(trunk, x[:1, :3], torch.tensor([3]))
    padded = run(trunk, x, torch.tensor([3, 7]))
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert not padded[0, 3:].any()


def test_order_matters(trunk):
    x = torch.randn(1, 5, 32)
    swapped = x[:, [1, 0, 2, 3, 4]]
    length = torch.tensor([5])
    assert not torch.allclose(run(trunk, x, length)[:, -1], run(trunk, swapped, length)[:, -1], atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 3, 0)])
def test_a_candidate_is_scored_as_if_it_alone_came_next(trunk, lengths):
    x, candidates = torch.randn(3, 6, 32), torch.randn(3, 4, 32)
    times = torch.zeros(3, 6, dtype=torch.int64)
    out = trunk.forward_candidates(x, torch.tensor(lengths), times, candidates, times[:, 0])
    for b, length in enumerate(lengths):
        for m in range(4):
            appended = torch.cat([x[b, :length], candidates[b, m : m + 1]])[None]
            expected = run(trunk, appended, torch.tensor([length + 1]))[0, -1]
            torch.testing.assert_close(out[b, m], expected, atol=1e-5, rtol=1e-4)


def test_prefill_is_the_last_state_and_extend_goes_on_from_it(trunk):
    x, lengths = torch.randn(3, 9, 32), torch.tensor([7, 3, 1])
    times = torch.arange(9).expand(3, 9)
    state, cache = trunk.prefill(x[:, :7], lengths, times[:, :7])
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(state[b], run(trunk, x[b : b + 1, :length], lengths[b : b + 1])[0, -1])
    for step in range(2):
        state, cache = trunk.extend(cache, x[torch.arange(3), lengths + step], times[:, 7 + step])
    for b, length in enumerate((lengths + 2).tolist()):
        expected = run(trunk, x[b : b + 1, :length], torch.tensor([length]))[0, -1]
        torch.testing.assert_close(state[b], expected, atol=1e-5, rtol=1e-4)


def test_a_cache_can_be_split_and_joined(trunk):
    x, lengths, times = torch.randn(3, 6, 32), torch.tensor([6, 2, 4]), torch.arange(6).expand(3, 6)
    _, cache = trunk.prefill(x, lengths, times)
    parts = [cache.select(torch.tensor([b])) for b in (2, 0, 1)]
    assert [part.time_ms_BT.shape[1] for part in parts] == [4, 6, 2]
    joined = TrunkCache.cat(parts)
    new, at = torch.randn(3, 32), torch.tensor([10, 10, 10])
    expected, _ = trunk.extend(cache, new, at)
    state, longer = trunk.extend(joined, new[[2, 0, 1]], at)
    torch.testing.assert_close(state, expected[[2, 0, 1]], atol=1e-5, rtol=1e-4)
    assert longer.length_B.tolist() == [5, 7, 3]


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


def test_what_serving_keeps_can_be_trained_with(trunk):
    x, length = torch.randn(2, 5, 32), torch.tensor([5, 3])
    with torch.inference_mode():
        served = run(trunk, x, length)
    states = run(trunk, x, length)
    states.sum().backward()
    torch.testing.assert_close(states.detach(), served.clone())
    assert all(parameter.grad is not None for parameter in trunk.blocks.parameters())
