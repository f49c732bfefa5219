"""What `models.networks.base.Trunk` promises, of every trunk: each check is handed one in evaluation mode.

Shapes: B batch, T history, M candidates, D width.
"""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.base import Trunk
from models.networks.config import TRUNKS
from models.networks.hstu_trunk import HstuTrunk
from models.networks.softmax_trunk import SoftmaxTrunk
from models.networks.trunk_cache import TrunkCache
from tests.sources import classes

D_MODEL, NUM_LAYERS, NUM_HEADS, DROPOUT = 32, 3, 4, 0.2
# of three users: alike, with padding, and with one who has none
LENGTHS = [(6, 6, 6), (6, 3, 0)]
DAY_MS = 86_400_000


def make_softmax() -> SoftmaxTrunk:
    return SoftmaxTrunk(D_MODEL, NUM_LAYERS, NUM_HEADS, DROPOUT)


def make_hstu() -> HstuTrunk:
    """With biases of the size of the scores, so that a wrong one shows."""
    trunk = HstuTrunk(D_MODEL, NUM_LAYERS, NUM_HEADS, DROPOUT)
    nn.init.normal_(trunk.bias.position_table)
    nn.init.normal_(trunk.bias.time_table)
    return trunk


MAKERS: dict[str, Callable[[], nn.Module]] = {"softmax": make_softmax, "hstu": make_hstu}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], nn.Module]:
    """Makes each trunk in turn; other seeds, other weights."""
    maker = MAKERS[request.param]

    def seeded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return maker().eval()

    return seeded


@pytest.fixture
def trunk(make: Callable[[int], nn.Module]) -> nn.Module:
    return make(0)


def make_times(batch: int, width: int) -> Tensor:
    """From a millisecond to two years between one event and the next."""
    gaps = (2.0 ** (torch.rand(batch, width) * 36)).long()
    return gaps.cumsum(1) + 1_700_000_000_000


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def test_every_trunk_is_in_the_suite() -> None:
    members = [name for name in vars(Trunk) if not name.startswith("_")]
    found = {one for one in classes("models") if all(hasattr(one, name) for name in members)}
    assert found - {Trunk} == {type(maker()) for maker in MAKERS.values()}
    assert set(MAKERS) == set(TRUNKS)


def test_the_states_of_some_positions_are_those_of_the_whole_pass(trunk: Trunk) -> None:
    x, times, length = torch.randn(3, 6, D_MODEL), make_times(3, 6), torch.tensor([6, 3, 1])
    wanted = torch.rand(3, 6) < 0.5
    wanted &= torch.arange(6) < length[:, None]
    close(trunk.states_at(x, length, times, wanted), trunk(x, length, times)[wanted])


def test_a_state_depends_on_the_past_only(trunk: Trunk) -> None:
    x, times, length = torch.randn(2, 7, D_MODEL), make_times(2, 7), torch.tensor([7, 7])
    changed, later = x.clone(), times.clone()
    changed[:, 4:] = torch.randn(2, 3, D_MODEL)
    later[:, 4:] += 3 * DAY_MS
    before, after = trunk(x, length, times), trunk(changed, length, later)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_order_matters(trunk: Trunk) -> None:
    x, times, length = torch.randn(1, 5, D_MODEL), make_times(1, 5), torch.tensor([5])
    swapped = trunk(x[:, [1, 0, 2, 3, 4]], length, times)
    assert not torch.allclose(trunk(x, length, times)[:, -1], swapped[:, -1], atol=1e-4)


def test_a_state_is_zero_past_the_length_and_the_same_alone_or_in_a_batch(trunk: Trunk) -> None:
    x, times = torch.randn(2, 7, D_MODEL), make_times(2, 7)
    alone = trunk(x[:1, :3], torch.tensor([3]), times[:1, :3])
    times[0, 3:] = 0
    padded = trunk(x, torch.tensor([3, 7]), times)
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert not padded[0, 3:].any()


def test_what_stands_in_the_padding_has_no_influence(trunk: Trunk) -> None:
    x, times, length = torch.randn(3, 8, D_MODEL), make_times(3, 8), torch.tensor([6, 3, 0])
    candidates, next_ms, event = torch.randn(3, 4, D_MODEL), make_times(3, 1)[:, 0], torch.randn(3, D_MODEL)

    def all_ways(x: Tensor, times: Tensor) -> list[Tensor]:
        state, cache = trunk.prefill(x, length, times)
        longer, _ = trunk.extend(cache, event, next_ms)
        scored = trunk.forward_candidates(x, length, times, candidates, next_ms)
        # the state of an empty history means nothing
        return [trunk(x, length, times), scored, state[:2], longer]

    is_padding = torch.arange(8) >= length[:, None]
    expected = all_ways(x, times)
    other_x = torch.where(is_padding[:, :, None], 1_000 * torch.randn(3, 8, D_MODEL), x)
    other_times = torch.where(is_padding, torch.randint(-(10**15), 10**15, (3, 8)), times)
    for found, wanted in zip(all_ways(other_x, other_times), expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_candidate_is_scored_as_if_it_alone_came_next(trunk: Trunk, lengths: tuple[int, ...]) -> None:
    x, candidates, times = torch.randn(3, 6, D_MODEL), torch.randn(3, 4, D_MODEL), make_times(3, 7)
    length = torch.tensor(lengths)
    out = trunk.forward_candidates(x, length, times[:, :6], candidates, times[:, 6])
    for b, n in enumerate(lengths):
        appended_times = torch.cat([times[b, :n], times[b, 6:]])[None]
        for m in range(4):
            appended = torch.cat([x[b, :n], candidates[b, m : m + 1]])[None]
            close(out[b, m], trunk(appended, torch.tensor([n + 1]), appended_times)[0, -1])


def test_candidates_do_not_see_each_other(trunk: Trunk) -> None:
    x, candidates, times = torch.randn(3, 6, D_MODEL), torch.randn(3, 4, D_MODEL), make_times(3, 7)
    history = (x, torch.tensor([6, 3, 0]), times[:, :6])
    out = trunk.forward_candidates(*history, candidates, times[:, 6])
    others = candidates.clone()
    others[:, [0, 2, 3]] = 100 * torch.randn(3, 3, D_MODEL)
    close(trunk.forward_candidates(*history, others, times[:, 6])[:, 1], out[:, 1])
    close(trunk.forward_candidates(*history, candidates.flip(1), times[:, 6]).flip(1), out)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_prefill_gives_the_last_state_of_the_whole_pass(trunk: Trunk, lengths: tuple[int, ...]) -> None:
    x, times, length = torch.randn(3, 6, D_MODEL), make_times(3, 6), torch.tensor(lengths)
    state, cache = trunk.prefill(x, length, times)
    every = trunk(x, length, times)
    for b, n in enumerate(lengths):
        if n:
            close(state[b], every[b, n - 1])
    assert cache.length_B.tolist() == list(lengths)
    width = D_MODEL // NUM_HEADS
    assert cache.key_ZBHTE.shape == cache.value_ZBHTE.shape == (NUM_LAYERS, 3, NUM_HEADS, 6, width)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_extended_state_is_that_of_the_longer_history(trunk: Trunk, lengths: tuple[int, ...]) -> None:
    x, times, length = torch.randn(3, 12, D_MODEL), make_times(3, 12), torch.tensor(lengths)
    _, cache = trunk.prefill(x[:, :6], length, times[:, :6])
    user = torch.arange(3)
    for step in range(4):
        at = length + step
        state, cache = trunk.extend(cache, x[user, at], times[user, at])
        close(state, trunk.prefill(x, at + 1, times)[0])
        close(state, trunk(x, at + 1, times)[user, at])
    assert cache.length_B.tolist() == [n + 4 for n in lengths]


def test_a_history_of_any_length_is_served(trunk: Trunk) -> None:
    """Longer than any table that a trunk keeps, and grown past it event by event."""
    width = 300
    x, times = torch.randn(1, width, D_MODEL), make_times(1, 1) + torch.arange(width) * DAY_MS
    length = torch.tensor([width])
    expected = trunk(x, length, times)[:, -1]
    close(trunk.prefill(x, length, times)[0], expected)
    state, cache = trunk.prefill(x[:, :250], torch.tensor([250]), times[:, :250])
    for at in range(250, width):
        state, cache = trunk.extend(cache, x[:, at], times[:, at])
    close(state, expected)


def test_extending_leaves_the_cache_it_started_from(trunk: Trunk) -> None:
    x, times, event = torch.randn(2, 4, D_MODEL), make_times(2, 5), torch.randn(2, D_MODEL)
    _, cache = trunk.prefill(x, torch.tensor([4, 2]), times[:, :4])
    before = {one.name: getattr(cache, one.name).clone() for one in fields(cache)}
    first, _ = trunk.extend(cache, event, times[:, 4])
    assert all(torch.equal(getattr(cache, name), tensor) for name, tensor in before.items())
    again, _ = trunk.extend(cache, event, times[:, 4])
    assert torch.equal(first, again)


def test_users_are_split_and_joined(trunk: Trunk) -> None:
    x, times, event = torch.randn(3, 6, D_MODEL), make_times(3, 7), torch.randn(3, D_MODEL)
    _, cache = trunk.prefill(x, torch.tensor([2, 6, 3]), times[:, :6])
    expected, _ = trunk.extend(cache, event, times[:, 6])
    short = cache.select(torch.tensor([2, 0]))
    assert short.key_ZBHTE.shape == (NUM_LAYERS, 2, NUM_HEADS, 3, D_MODEL // NUM_HEADS)
    joined = TrunkCache.cat([short, cache.select(torch.tensor([1]))])
    order = torch.tensor([2, 0, 1])
    assert joined.length_B.tolist() == [3, 2, 6]
    state, longer = trunk.extend(joined, event[order], times[order, 6])
    close(state, expected[order])
    assert longer.time_ms_BT[0, :4].tolist() == [*times[2, :3].tolist(), int(times[2, 6])]


def test_no_users_no_candidates_and_no_history_are_served(trunk: Trunk) -> None:
    none, times = torch.tensor([0]), make_times(1, 1)
    assert trunk(torch.zeros(0, 4, D_MODEL), none[:0], times[:0].expand(0, 4)).shape == (0, 4, D_MODEL)
    alone = torch.randn(1, 2, D_MODEL)
    out = trunk.forward_candidates(torch.zeros(1, 0, D_MODEL), none, times[:, :0], alone, times[:, 0])
    close(out[:, 1:], trunk(alone[:, 1:], torch.tensor([1]), times))
    out = trunk.forward_candidates(alone, torch.tensor([2]), times.expand(1, 2), alone[:, :0], times[:, 0])
    assert out.shape == (1, 0, D_MODEL)


def test_a_state_can_start_from_nothing(trunk: Trunk) -> None:
    x, times, none = torch.randn(2, 1, D_MODEL), make_times(2, 1), torch.tensor([0, 0])
    _, cache = trunk.prefill(torch.zeros(2, 1, D_MODEL), none, torch.zeros_like(times))
    state, longer = trunk.extend(cache.select(torch.arange(2)), x[:, 0], times[:, 0])
    close(state, trunk(x, torch.tensor([1, 1]), times)[:, 0])
    assert longer.key_ZBHTE.shape == (NUM_LAYERS, 2, NUM_HEADS, 1, D_MODEL // NUM_HEADS)


def test_evaluation_is_deterministic_and_training_drops(trunk: nn.Module) -> None:
    x, times, length = torch.randn(2, 6, D_MODEL), make_times(2, 6), torch.tensor([6, 3])
    random = torch.get_rng_state()
    first = trunk(x, length, times)
    assert torch.equal(trunk(x, length, times), first)
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.equal(trunk.train()(x, length, times), first)


def test_gradients_reach_every_parameter_also_of_a_trunk_that_served(trunk: nn.Module) -> None:
    x, times, length = torch.randn(2, 6, D_MODEL), make_times(2, 6), torch.tensor([6, 3])
    with torch.inference_mode():
        served = trunk(x, length, times)
    states = trunk(x, length, times)
    torch.testing.assert_close(states.detach(), served.clone())
    (states * torch.randn_like(states)).sum().backward()
    for name, parameter in trunk.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


def test_weights_that_are_saved_and_loaded_say_the_same(make: Callable[[int], nn.Module]) -> None:
    trunk, other = make(0), make(1)
    x, times, length = torch.randn(2, 200, D_MODEL), make_times(2, 200), torch.tensor([200, 30])
    names = set(trunk.state_dict())
    expected = trunk(x, length, times)
    assert not torch.allclose(other(x, length, times), expected)
    # what use leaves behind is no part of the weights
    assert set(trunk.state_dict()) == names
    other.load_state_dict(trunk.state_dict())
    assert torch.equal(other(x, length, times), expected)


def test_loss_falls_on_a_repeated_batch(trunk: nn.Module) -> None:
    trunk.train()
    x, times, length = torch.randn(8, 6, D_MODEL), make_times(8, 6), torch.full((8,), 6)
    target = torch.randint(0, D_MODEL, (8, 6))
    optimizer = torch.optim.AdamW(trunk.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(trunk(x, length, times).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
