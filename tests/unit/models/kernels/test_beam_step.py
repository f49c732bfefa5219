"""The beam step's kernel (interpreter or GPU) beside its torch reference and beside plain Python."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.beam_step import beam_step
from models.kernels.beam_step_torch import NO_KEY, NO_NODE, BeamStep, Children, Excluded, beam_step_reference
from models.kernels.beam_step_triton import launch_beam_step as launch
from tests.kernel_device import on_device

launch_beam_step = on_device(launch)

TOLERANCE = 1e-4
DOMINANT = 64.0  # exp(-64 + 32) vanishes beside 1 in float32: a logit this high makes the log-softmax exact


@dataclass
class Case:
    logits_BKV: Tensor
    score_BK: Tensor
    node_BK: Tensor
    children: Children
    width: int
    excluded: Excluded | None

    def run(self, step) -> BeamStep:
        return step(
            self.logits_BKV,
            self.score_BK,
            self.node_BK,
            self.children,
            width=self.width,
            excluded=self.excluded,
        )

    def alone(self, b: int) -> "Case":
        """Request b in a batch of its own."""
        excluded = self.excluded
        if excluded is not None:
            excluded = Excluded(key_BX=excluded.key_BX[b : b + 1], count_BX=excluded.count_BX[b : b + 1])
        return replace(
            self,
            logits_BKV=self.logits_BKV[b : b + 1],
            score_BK=self.score_BK[b : b + 1],
            node_BK=self.node_BK[b : b + 1],
            excluded=excluded,
        )


def children_of(codes: list[list[int]], live: list[int]) -> Children:
    """Parents with these codes; child nodes are numbered backwards, so that no number is a position."""
    flat = [code for parent in codes for code in sorted(parent)]
    ends = torch.tensor([len(parent) for parent in codes], dtype=torch.int64).cumsum(0)
    return Children(
        offset_P1=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        code_R=torch.tensor(flat, dtype=torch.int64),
        child_R=torch.arange(len(flat)).flip(0),
        live_N=torch.tensor(live, dtype=torch.int64),
        max_children=max((len(parent) for parent in codes), default=0),
    )


def excluded_of(lists: list[dict[int, int]]) -> Excluded:
    width = 1
    while width < max(map(len, lists)):
        width *= 2
    rows = [sorted(counts.items()) + [(NO_KEY, 0)] * (width - len(counts)) for counts in lists]
    table = torch.tensor(rows, dtype=torch.int64)
    return Excluded(key_BX=table[..., 0].contiguous(), count_BX=table[..., 1].contiguous())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    codebook_size = draw(st.sampled_from([1, 3, 8, 21]))
    num_parents, batch_size = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    fan_out = st.sampled_from([0, 1, codebook_size // 2, codebook_size])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    codes = [
        torch.randperm(codebook_size, generator=generator)[: draw(fan_out)].tolist()
        for _ in range(num_parents)
    ]
    if not any(codes):
        codes[0] = [0]
    num_edges = sum(map(len, codes))
    availability = draw(st.sampled_from([1.0, 0.6, 0.0]))
    live_N = (torch.rand(num_edges, generator=generator) < availability).long() * torch.randint(
        1, 4, (num_edges,), generator=generator
    )
    num_beams = draw(st.integers(1, 7))
    excluded = None
    if draw(st.booleans()):
        chosen = st.dictionaries(st.integers(0, num_edges - 1), st.integers(1, 4), max_size=6)
        excluded = excluded_of([draw(chosen) for _ in range(batch_size)])
    return Case(
        logits_BKV=torch.randn(batch_size, num_beams, codebook_size, generator=generator) * 3,
        score_BK=-torch.rand(batch_size, num_beams, generator=generator) * 5,
        # past the last parent: a node without children; NO_NODE: no beam
        node_BK=torch.randint(-1, num_parents + 1, (batch_size, num_beams), generator=generator),
        children=children_of(codes, live_N.tolist()),
        width=draw(st.sampled_from([1, 2, 5, 40])),
        excluded=excluded,
    )


def exact(case: Case, seed: int) -> Case:
    """The same in quarters that the log-softmax leaves exact: many exact ties.

    One code is certain: each beam's first child."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randint(-4, 1, case.logits_BKV.shape, generator=generator).float() / 4
    for b in range(len(quarters)):
        for k, node in enumerate(case.node_BK[b].tolist()):
            live = live_edges(case, node)
            if live:
                quarters[b, k, live[0][0]] = DOMINANT
    score_BK = torch.randint(-4, 1, case.score_BK.shape, generator=generator).float() / 4
    return replace(case, logits_BKV=quarters, score_BK=score_BK)


def live_edges(case: Case, node: int) -> list[tuple[int, int, int]]:
    """(code, child, live items) of a node's children with an available item."""
    children = case.children
    if not 0 <= node < len(children.offset_P1) - 1:
        return []
    begin, end = children.offset_P1[node : node + 2].tolist()
    edges = [
        (int(children.code_R[edge]), child, int(children.live_N[child]))
        for edge, child in zip(range(begin, end), children.child_R[begin:end].tolist(), strict=True)
    ]
    return [edge for edge in edges if edge[2] > 0]


def slow_step(case: Case, b: int) -> list[tuple[int, int, int, float]]:
    """(beam, code, child, score) of what a request keeps, in Python."""
    hidden = {}
    if case.excluded is not None:
        hidden = dict(zip(case.excluded.key_BX[b].tolist(), case.excluded.count_BX[b].tolist(), strict=True))
    found = []
    for k, node in enumerate(case.node_BK[b].tolist()):
        live = live_edges(case, node)
        logits_V = case.logits_BKV[b, k].double()
        normaliser = logits_V[[code for code, _, _ in live]].logsumexp(0)
        for code, child, count in live:
            if count > hidden.get(child, 0):
                score = float(case.score_BK[b, k] + logits_V[code] - normaliser)
                found.append((k, code, child, score))
    found.sort(key=lambda entry: (-entry[3], entry[0], entry[1]))
    return sorted(found[: case.width])


def kept(step: BeamStep, b: int) -> list[tuple[int, int, int, float]]:
    """The same of a step; asserts that the rest is padding."""
    columns = (step.parent_BW[b], step.code_BW[b], step.child_BW[b], step.score_BW[b])
    entries = list(zip(*(column.tolist() for column in columns), strict=True))
    found = [entry for entry in entries if entry[0] != NO_NODE]
    assert set(entries[len(found) :]) <= {(NO_NODE, NO_NODE, NO_NODE, -float("inf"))}
    return found


@settings(max_examples=15, deadline=None, derandomize=True)  # rounding may swap what is all but equal
@given(case=cases())
def test_kernel_and_reference_keep_what_plain_python_keeps(case: Case) -> None:
    for step in (case.run(launch_beam_step), case.run(beam_step_reference)):
        assert step.parent_BW.shape == (len(case.logits_BKV), case.width)
        for b in range(len(case.logits_BKV)):
            found, expected = kept(step, b), slow_step(case, b)
            assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
            assert [entry[3] for entry in found] == pytest.approx(
                [entry[3] for entry in expected], abs=TOLERANCE
            )


@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_ties_go_to_the_lower_beam_and_then_the_lower_code(case: Case, seed: int) -> None:
    case = exact(case, seed)
    for step in (case.run(launch_beam_step), case.run(beam_step_reference)):
        for b in range(len(case.logits_BKV)):
            assert kept(step, b) == slow_step(case, b)


@settings(max_examples=6, deadline=None)
@given(case=cases())
def test_a_request_gets_the_same_alone_as_in_a_batch(case: Case) -> None:
    together = case.run(launch_beam_step)
    for b in range(len(case.logits_BKV)):
        assert kept(case.alone(b).run(launch_beam_step), 0) == kept(together, b)


def flat_case(num_beams: int, codebook_size: int, width: int, **changes) -> Case:
    """Every beam at a parent of its own with all codes."""
    generator = torch.Generator().manual_seed(0)
    case = Case(
        logits_BKV=torch.randn(1, num_beams, codebook_size, generator=generator),
        score_BK=-torch.rand(1, num_beams, generator=generator),
        node_BK=torch.arange(num_beams)[None],
        children=children_of([list(range(codebook_size))] * num_beams, [1] * (num_beams * codebook_size)),
        width=width,
        excluded=None,
    )
    return replace(case, **changes)


def test_full_size_in_several_tiles() -> None:
    case = flat_case(50, 256, 50)
    step = case.run(launch_beam_step)
    expected = case.run(beam_step_reference)
    assert torch.equal(step.parent_BW, expected.parent_BW)
    assert torch.equal(step.child_BW, expected.child_BW)
    torch.testing.assert_close(step.score_BW, expected.score_BW)


@pytest.mark.parametrize("run", [launch_beam_step, beam_step_reference])
def test_a_single_request_keeps_all_its_beams(run) -> None:
    """FlashRec's beams collapsed to one (and to duplicates of it) at concurrency 1."""
    step = flat_case(12, 16, 12).run(run)
    assert len(set(step.child_BW[0].tolist())) == 12
    assert (step.parent_BW >= 0).all()
    assert torch.isfinite(step.score_BW).all()


@pytest.mark.parametrize("run", [launch_beam_step, beam_step_reference])
def test_the_least_likely_codes_are_found_where_only_they_exist(run) -> None:
    """FlashRec cut to the most likely candidates before masking, which starved beams of valid ones."""
    codebook_size = 64
    logits_V = torch.arange(codebook_size, 0, -1).float()  # the valid codes are the last ones
    case = Case(
        logits_BKV=logits_V.expand(1, 3, -1),
        score_BK=torch.tensor([[0.0, -100.0, -200.0]]),
        node_BK=torch.tensor([[0, 1, 2]]),
        children=children_of([[62, 63]] * 3, [1] * 6),
        width=6,
        excluded=None,
    )
    step = case.run(run)
    assert step.parent_BW.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert step.code_BW.tolist() == [[62, 63] * 3]


@pytest.mark.parametrize("run", [launch_beam_step, beam_step_reference])
def test_an_impossible_child_is_none(run) -> None:
    case = flat_case(1, 4, 3, logits_BKV=torch.tensor([[[0.0, -torch.inf, 1.0, -torch.inf]]]))
    step = case.run(run)
    assert step.code_BW.tolist() == [[0, 2, NO_NODE]]
    assert step.score_BW[0, 2] == -torch.inf


@pytest.mark.parametrize("run", [launch_beam_step, beam_step_reference])
def test_the_narrow_integers_of_the_trie_do(run) -> None:
    case = flat_case(3, 8, 5)
    wide = case.children
    narrow = Children(
        offset_P1=wide.offset_P1.int(),
        code_R=wide.code_R.short(),
        child_R=wide.child_R.int(),
        live_N=wide.live_N.int(),
        max_children=wide.max_children,
    )
    excluded = excluded_of([{0: 1, 5: 1, 23: 1}])
    case = replace(case, excluded=excluded)
    assert kept(replace(case, children=narrow).run(run), 0) == kept(case.run(run), 0)


@pytest.mark.parametrize("run", [launch_beam_step, beam_step_reference])
def test_no_request_and_a_width_of_nothing(run) -> None:
    case = flat_case(2, 4, 3)
    nobody = replace(
        case, logits_BKV=case.logits_BKV[:0], score_BK=case.score_BK[:0], node_BK=case.node_BK[:0]
    )
    assert nobody.run(run).child_BW.shape == (0, 3)
    with pytest.raises(ValueError, match="width"):
        replace(case, width=0).run(beam_step)


def test_on_a_cpu_the_reference_answers() -> None:
    case = flat_case(2, 4, 3)
    assert kept(case.run(beam_step), 0) == kept(case.run(beam_step_reference), 0)
