"""HSTU attention's kernels, in Triton's interpreter, beside torch: values, gradients, masks, buckets."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.kernels import hstu_triton
from models.kernels.hstu_attention import hstu_attention, hstu_attention_reference
from models.kernels.hstu_triton import HstuAttention
from models.networks import hstu_trunk as hstu
from tests.kernel_device import on_device

attend = on_device(HstuAttention.apply)

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a sequence of 20 goes over several tiles."""
    monkeypatch.setattr(hstu_triton, "FORWARD_BLOCK", {2: 16, 4: 16})
    monkeypatch.setattr(hstu_triton, "BACKWARD_BLOCK", 16)


@dataclass
class Case:
    """Sequences of (events, candidates)."""

    q_NHE: Tensor
    k_NHE: Tensor
    v_NHE: Tensor
    time_ms_N: Tensor
    offset_B1: Tensor
    num_candidates_B: Tensor
    position_table_PH: Tensor
    time_table_RH: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())

    @property
    def max_length(self) -> int:
        return int(self.offset_B1.diff().max()) if len(self.num_candidates_B) else 0

    @property
    def learned(self) -> tuple[Tensor, ...]:
        return (self.q_NHE, self.k_NHE, self.v_NHE, self.position_table_PH, self.time_table_RH)


def make_case(
    sequences: list[tuple[int, int]], *, num_heads: int = 2, width: int = 8, seed: int = 0,
    num_distances: int = 7, num_buckets: int = 30, dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([events + candidates for events, candidates in sequences], dtype=torch.int64)
    total = int(lengths.sum())
    times = []
    for events, candidates in sequences:
        # gaps of every size, from none to years, and steps back in time
        gap_ms = (2 ** (torch.rand(events, generator=generator) * 36)).long() - 100
        past_ms = gap_ms.cumsum(0) + 1_700_000_000_000
        now_ms = (past_ms[-1] if events else torch.tensor(0)) + DAY_MS
        times += [past_ms, now_ms.expand(candidates)]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return Case(
        q_NHE=normal(total, num_heads, width),
        k_NHE=normal(total, num_heads, width),
        v_NHE=normal(total, num_heads, width),
        time_ms_N=torch.cat([*times, torch.zeros(0, dtype=torch.int64)]),
        offset_B1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        num_candidates_B=torch.tensor([candidates for _, candidates in sequences], dtype=torch.int64),
        position_table_PH=torch.randn(num_distances, num_heads, generator=generator).requires_grad_(),
        time_table_RH=torch.randn(num_buckets, num_heads, generator=generator).requires_grad_(),
    )


def kernel(case: Case) -> Tensor:
    out: Tensor = attend(*case.arguments, case.max_length)
    return out


def reference(case: Case) -> Tensor:
    return hstu_attention_reference(*case.arguments)


SHAPES = {
    "no sequence": [],
    "only empty sequences": [(0, 0), (0, 0)],
    "one event": [(1, 0)],
    "one candidate and no history": [(0, 1)],
    "candidates and no history": [(0, 5)],
    "no candidates": [(20, 0)],
    "a block exactly": [(16, 0), (12, 4)],
    "history ends at a block's end": [(16, 16)],
    "candidates over several blocks": [(3, 33)],
    "ragged": [(5, 2), (0, 0), (19, 3), (33, 0), (0, 17)],
}


@pytest.mark.parametrize("sequences", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_all_gradients_are_those_of_torch(sequences: list[tuple[int, int]]) -> None:
    case = make_case(sequences)
    expected, found = reference(case), kernel(case)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight_NHE = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    expected_grads = torch.autograd.grad((expected * weight_NHE).sum(), case.learned, allow_unused=True)
    grads = torch.autograd.grad((found * weight_NHE).sum(), case.learned)
    for grad, expected_grad, learned in zip(grads, expected_grads, case.learned, strict=True):
        expected_grad = torch.zeros_like(learned) if expected_grad is None else expected_grad
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("num_heads", "width"), [(1, 1), (3, 20), (4, 64)])
def test_any_number_of_heads_of_any_width(num_heads: int, width: int) -> None:
    case = make_case([(6, 2), (18, 1)], num_heads=num_heads, width=width)
    expected, found = reference(case), kernel(case)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected_grads = torch.autograd.grad(expected.square().sum(), case.learned)
    for grad, expected_grad in zip(
        torch.autograd.grad(found.square().sum(), case.learned), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-2)


def test_bfloat16_is_as_close_as_bfloat16_is() -> None:
    case = make_case([(18, 3), (2, 1)], dtype=torch.bfloat16)
    exact = hstu_attention_reference(*(x.float() if x.dtype == torch.bfloat16 else x for x in case.arguments))
    found = kernel(case)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)
    grads = torch.autograd.grad(found.float().sum(), case.learned)
    expected_grads = torch.autograd.grad(exact.sum(), case.learned)
    for grad, expected_grad, learned in zip(grads, expected_grads, case.learned, strict=True):
        assert grad.dtype == learned.dtype
        torch.testing.assert_close(grad.float(), expected_grad.float(), rtol=5e-2, atol=5e-2)


def test_it_is_the_attention_of_the_module() -> None:
    """A padded batch through `models.networks.hstu_trunk`'s bias, mask and formula; ragged through the
    kernel."""
    torch.manual_seed(0)
    num_layers, num_heads, layer, lengths = 2, 2, 1, [4, 20, 1]
    case = make_case([(length, 0) for length in lengths], num_heads=num_heads)
    bias = hstu.RelativeBias(num_layers, num_heads)
    heads = slice(layer * num_heads, (layer + 1) * num_heads)
    case.position_table_PH, case.time_table_RH = bias.position_table[:, heads], bias.time_table[:, heads]
    width = max(lengths)

    def padded(x_N: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(x_N.split(lengths)), batch_first=True)

    position_T = torch.arange(width)
    distance_TT = position_T[:, None] - position_T
    time_ms_BT = padded(case.time_ms_N)
    bias_ZBHTT = bias(distance_TT[None], time_ms_BT[:, :, None] - time_ms_BT[:, None, :])
    q, k, v = (padded(x).transpose(1, 2) for x in (case.q_NHE, case.k_NHE, case.v_NHE))
    out_BHTE = hstu.hstu_attention(q, k, v, bias_ZBHTT[layer], distance_TT[None, None] >= 0)
    expected = torch.cat([out_BHTE[b, :, :length].transpose(0, 1) for b, length in enumerate(lengths)])
    found = kernel(case)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    tables = (bias.position_table, bias.time_table)
    for grad, expected_grad in zip(
        torch.autograd.grad(found.square().sum(), tables),
        torch.autograd.grad(expected.square().sum(), tables),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


def test_a_candidate_gets_what_the_next_event_would() -> None:
    case = make_case([(17, 3)])
    together = kernel(case)
    for candidate in (17, 18, 19):
        rows = [*range(17), candidate]
        alone = attend(
            case.q_NHE[rows], case.k_NHE[rows], case.v_NHE[rows], case.time_ms_N[rows],
            torch.tensor([0, 18]), torch.tensor([0]), case.position_table_PH, case.time_table_RH, 18,
        )  # fmt: skip
        torch.testing.assert_close(together[candidate], alone[17], rtol=1e-5, atol=1e-5)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    case = make_case([(5, 1), (18, 2)])
    together = kernel(case)
    alone = attend(
        case.q_NHE[6:], case.k_NHE[6:], case.v_NHE[6:], case.time_ms_N[6:],
        torch.tensor([0, 20]), torch.tensor([2]), case.position_table_PH, case.time_table_RH, 20,
    )  # fmt: skip
    assert torch.equal(together[6:], alone)


def test_buckets_at_the_powers_of_two() -> None:
    """2^k - 1 has k binary digits, 2^k one more; from 2^25 on float32 rounds the former up to the latter."""
    elapsed_ms = [2**power + step for power in (0, 1, 2, 24, 25, 31, 32, 45) for step in (-1, 0)]
    case = make_case([(1, 1)] * len(elapsed_ms), num_heads=1, num_buckets=48)
    case.time_ms_N = torch.tensor([[1_000, 1_000 + elapsed] for elapsed in elapsed_ms]).flatten()
    case.k_NHE, case.position_table_PH = (
        torch.zeros_like(case.k_NHE),
        torch.zeros_like(case.position_table_PH),
    )
    case.v_NHE = torch.ones_like(case.v_NHE)
    case.time_table_RH = torch.arange(48.0)[:, None].requires_grad_()  # a bucket's number, told by its weight
    silu = torch.nn.functional.silu(torch.tensor([float(elapsed.bit_length()) for elapsed in elapsed_ms]))
    torch.testing.assert_close(kernel(case)[1::2, 0, 0], silu / 2)


def test_on_a_cpu_the_reference_answers() -> None:
    case = make_case([(3, 2)])
    assert torch.equal(hstu_attention(*case.arguments, max_length=5), reference(case))
