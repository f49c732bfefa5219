"""The compiled trunk is the trunk: states, keys and values, of whole histories and of one more event."""

import pytest
import torch

from models.networks.compiled_trunk import CompiledTrunk, compiled_trunk
from models.networks.config import ModelConfig
from models.networks.softmax_trunk import SoftmaxTrunk
from models.networks.trunks import make_trunk

WIDTH = 24


def make(num_layers: int) -> SoftmaxTrunk:
    torch.manual_seed(num_layers)
    trunk = SoftmaxTrunk(WIDTH, num_layers, 3, 0.1).eval()
    for parameter in trunk.parameters():  # norms begin as the identity
        parameter.data += 0.3 * torch.randn_like(parameter)
    return trunk


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[1], [7], [5, 0, 9, 1], [0, 0], [70, 3]])
@torch.no_grad()
def test_it_equals_the_trunk(num_layers: int, lengths: list[int]) -> None:
    trunk = make(num_layers)
    fast = CompiledTrunk(trunk)
    length_B = torch.tensor(lengths)
    width = max(1, *lengths)
    x_BTD = torch.randn(len(lengths), width, WIDTH)
    time_ms_BT = torch.arange(width).expand(len(lengths), -1)
    state_BD, cache = trunk.prefill(x_BTD, length_B, time_ms_BT)
    found_BD, found = fast.prefill(x_BTD, length_B, time_ms_BT)
    is_some = length_B > 0
    torch.testing.assert_close(found_BD[is_some], state_BD[is_some], atol=2e-5, rtol=1e-5)
    for _ in range(2):
        for b, length in enumerate(found.length_B.tolist()):
            for name in ("key_ZBHTE", "value_ZBHTE"):
                mine, plain = (getattr(one, name)[:, b, :, :length] for one in (found, cache))
                torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-5)
            assert torch.equal(found.time_ms_BT[b, :length], cache.time_ms_BT[b, :length])
        before = found.key_ZBHTE.clone(), found.time_ms_BT.clone()
        x_BD, time_ms_B = torch.randn(len(lengths), WIDTH), torch.full((len(lengths),), 99)
        kept = found
        state_BD, cache = trunk.extend(cache, x_BD, time_ms_B)
        found_BD, found = fast.extend(found, x_BD, time_ms_B)
        torch.testing.assert_close(found_BD, state_BD, atol=2e-5, rtol=1e-5)
        assert torch.equal(found.length_B, cache.length_B)
        assert torch.equal(kept.key_ZBHTE, before[0])
        assert torch.equal(kept.time_ms_BT, before[1])


@torch.no_grad()
def test_a_cache_in_bfloat16_is_extended_as_what_it_holds() -> None:
    trunk = make(2)
    x_BTD, length_B = torch.randn(2, 5, WIDTH), torch.tensor([5, 3])
    _, cache = trunk.prefill(x_BTD, length_B, torch.zeros(2, 5, dtype=torch.int64))
    x_BD, time_ms_B = torch.randn(2, WIDTH), torch.ones(2, dtype=torch.int64)
    low = cache.to(torch.bfloat16)
    expected, _ = trunk.extend(low.to(torch.float32), x_BD, time_ms_B)
    found, longer = CompiledTrunk(trunk).extend(low, x_BD, time_ms_B)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert longer.key_ZBHTE.dtype == torch.float32


def test_another_trunk_has_no_compiled_form() -> None:
    assert compiled_trunk(make_trunk(ModelConfig(content_dim=8, trunk="hstu"))) is None
    assert compiled_trunk(make_trunk(ModelConfig(content_dim=8, trunk="softmax"))) is not None


@torch.no_grad()
def test_threads_share_many_histories() -> None:
    trunk = make(2)
    lengths = torch.tensor([1 + n % 7 for n in range(40)])
    x_BTD, time_ms_BT = torch.randn(40, 7, WIDTH), torch.zeros(40, 7, dtype=torch.int64)
    x_BD, time_ms_B = torch.randn(40, WIDTH), torch.ones(40, dtype=torch.int64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found_BD, found = CompiledTrunk(trunk).prefill(x_BTD, lengths, time_ms_BT)
        longer_BD, longer = CompiledTrunk(trunk).extend(found, x_BD, time_ms_B)
    finally:
        torch.set_num_threads(before)
    state_BD, cache = trunk.prefill(x_BTD, lengths, time_ms_BT)
    torch.testing.assert_close(found_BD, state_BD, atol=2e-5, rtol=1e-5)
    next_BD, plain = trunk.extend(cache, x_BD, time_ms_B)
    torch.testing.assert_close(longer_BD, next_BD, atol=2e-5, rtol=1e-5)
    for b, length in enumerate(longer.length_B.tolist()):
        torch.testing.assert_close(
            longer.key_ZBHTE[:, b, :, :length], plain.key_ZBHTE[:, b, :, :length], atol=2e-5, rtol=1e-5
        )
