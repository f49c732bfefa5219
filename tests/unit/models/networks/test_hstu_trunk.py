import pytest
import torch
from torch.nn import functional

from models.kernels.hstu_formula import NUM_DISTANCES, NUM_TIME_BUCKETS, hstu_attention, time_bucket
from models.networks.config import ModelConfig
from models.networks.hstu_trunk import HstuTrunk
from models.networks.trunk_cache import TrunkCache

DAY_MS = 86_400_000
LENGTHS = [(6, 6, 6), (6, 3, 0)]


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


def test_a_state_depends_on_the_past_only(trunk):
    x, times, length = torch.randn(2, 7, 32), make_times(2, 7), torch.tensor([7, 7])
    changed, later = x.clone(), times.clone()
    changed[:, 4:] = torch.randn(2, 3, 32)
    later[:, 4:] += 3 * DAY_MS
    before, after = trunk(x, length, times), trunk(changed, length, later)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_is_zero_and_has_no_influence(trunk):
    x, times = torch.randn(2, 7, 32), make_times(2, 7)
    alone = trunk(x[:1, :3], torch.tensor([3]), times[:1, :3])
    times[0, 3:] = 0
    padded = trunk(x, torch.tensor([3, 7]), times)
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert not padded[0, 3:].any()


def test_order_and_elapsed_time_matter_and_the_date_does_not(trunk):
    x, times, length = torch.randn(1, 5, 32), make_times(1, 5), torch.tensor([5])
    state = trunk(x, length, times)
    swapped = trunk(x[:, [1, 0, 2, 3, 4]], length, times)
    assert not torch.allclose(state[:, -1], swapped[:, -1], atol=1e-4)
    slower = times.clone()
    slower[:, -1] += 8_000 * DAY_MS
    assert not torch.allclose(state[:, -1], trunk(x, length, slower)[:, -1], atol=1e-4)
    assert torch.equal(state, trunk(x, length, times + 1_000 * DAY_MS))


def test_distances_past_the_table_are_served(trunk):
    width = NUM_DISTANCES + 20
    x, times = torch.randn(1, width, 32), make_times(1, 1) + torch.arange(width) * DAY_MS
    state, _ = trunk.prefill(x, torch.tensor([width]), times)
    torch.testing.assert_close(state[0], trunk(x, torch.tensor([width]), times)[0, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_candidate_is_scored_as_if_it_alone_came_next(trunk, lengths):
    x, candidates, times = torch.randn(3, 6, 32), torch.randn(3, 4, 32), make_times(3, 7)
    out = trunk.forward_candidates(x, torch.tensor(lengths), times[:, :6], candidates, times[:, 6])
    for b, length in enumerate(lengths):
        appended_times = torch.cat([times[b, :length], times[b, 6:]])[None]
        for m in range(4):
            appended = torch.cat([x[b, :length], candidates[b, m : m + 1]])[None]
            expected = trunk(appended, torch.tensor([length + 1]), appended_times)[0, -1]
            torch.testing.assert_close(out[b, m], expected, atol=1e-5, rtol=1e-4)


def test_no_users_no_candidates_and_no_history_are_served(trunk):
    none, times = torch.tensor([0]), make_times(1, 1)
    assert trunk(torch.zeros(0, 4, 32), none[:0], times[:0].expand(0, 4)).shape == (0, 4, 32)
    alone = torch.randn(1, 2, 32)
    out = trunk.forward_candidates(torch.zeros(1, 0, 32), none, times[:, :0], alone, times[:, 0])
    expected = trunk(alone[:, 1:], torch.tensor([1]), times)
    torch.testing.assert_close(out[:, 1:], expected, atol=1e-5, rtol=1e-4)
    out = trunk.forward_candidates(alone, torch.tensor([2]), times.expand(1, 2), alone[:, :0], times[:, 0])
    assert out.shape == (1, 0, 32)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_prefill_gives_the_last_state(trunk, lengths):
    x, times, length = torch.randn(3, 6, 32), make_times(3, 6), torch.tensor(lengths)
    state, cache = trunk.prefill(x, length, times)
    every = trunk(x, length, times)
    for b, n in enumerate(lengths):
        if n:
            torch.testing.assert_close(state[b], every[b, n - 1], atol=1e-5, rtol=1e-4)
    assert cache.key_ZBHTE.shape == cache.value_ZBHTE.shape == (3, 3, 4, 6, 8)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_extended_state_equals_a_recomputed_one(trunk, lengths):
    x, times, length = torch.randn(3, 12, 32), make_times(3, 12), torch.tensor(lengths)
    _, cache = trunk.prefill(x[:, :6], length, times[:, :6])
    user = torch.arange(3)
    for step in range(4):
        at = length + step
        state, cache = trunk.extend(cache, x[user, at], times[user, at])
        expected = trunk(x, at + 1, times)[user, at]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)
    assert cache.length_B.tolist() == [n + 4 for n in lengths]


def test_a_state_can_start_from_nothing(trunk):
    x, times, none = torch.randn(2, 1, 32), make_times(2, 1), torch.tensor([0, 0])
    _, cache = trunk.prefill(torch.zeros(2, 1, 32), none, torch.zeros_like(times))
    state, longer = trunk.extend(cache.select(torch.arange(2)), x[:, 0], times[:, 0])
    torch.testing.assert_close(state, trunk(x, torch.tensor([1, 1]), times)[:, 0], atol=1e-5, rtol=1e-4)
    assert longer.key_ZBHTE.shape == (3, 2, 4, 1, 8)


def test_extending_leaves_the_cache_it_started_from(trunk):
    x, times = torch.randn(2, 4, 32), make_times(2, 5)
    _, cache = trunk.prefill(x, torch.tensor([4, 2]), times[:, :4])
    event = torch.randn(2, 32)
    first, _ = trunk.extend(cache, event, times[:, 4])
    again, _ = trunk.extend(cache, event, times[:, 4])
    assert torch.equal(first, again)


def test_users_are_split_and_joined(trunk):
    x, times, event = torch.randn(3, 6, 32), make_times(3, 7), torch.randn(3, 32)
    _, cache = trunk.prefill(x, torch.tensor([2, 6, 3]), times[:, :6])
    expected, _ = trunk.extend(cache, event, times[:, 6])
    short = cache.select(torch.tensor([2, 0]))
    assert short.key_ZBHTE.shape == (3, 2, 4, 3, 8)
    joined = TrunkCache.cat([short, cache.select(torch.tensor([1]))])
    order = torch.tensor([2, 0, 1])
    assert joined.length_B.tolist() == [3, 2, 6]
    state, longer = trunk.extend(joined, event[order], times[order, 6])
    torch.testing.assert_close(state, expected[order], atol=1e-5, rtol=1e-4)
    assert longer.time_ms_BT[0, :4].tolist() == [*times[2, :3].tolist(), int(times[2, 6])]


def test_gradients_reach_both_bias_tables_of_every_layer(trunk):
    x, times = torch.randn(2, 6, 32), make_times(2, 6)
    trunk(x, torch.tensor([6, 6]), times).square().sum().backward()
    for table in (trunk.bias.position_table, trunk.bias.time_table):
        per_head = table.grad.abs().sum(0)
        assert per_head.shape == (12,)
        assert (per_head > 0).all()
    assert not trunk.bias.position_table.grad[6:].any()


def test_loss_falls_on_a_repeated_batch():
    torch.manual_seed(0)
    trunk = HstuTrunk(32, 2, 4, 0.1).train()
    x, times, length = torch.randn(8, 6, 32), make_times(8, 6), torch.full((8,), 6)
    target = torch.randint(0, 32, (8, 6))
    optimizer = torch.optim.AdamW(trunk.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(trunk(x, length, times).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_trunk_of_a_configuration_is_one_that_exists():
    assert ModelConfig(trunk="hstu").trunk == "hstu"
    with pytest.raises(ValueError, match="trunk must be one of softmax, hstu"):
        ModelConfig(trunk="lstm")
