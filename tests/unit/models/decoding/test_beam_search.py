"""The fast beam search against the obvious one, and what it promises to every request."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.catalogue.trie import Trie
from models.compilation.precompile import precompile
from models.decoding.beam_search import CodeLogits, SearchResult, beam_search
from models.decoding.beam_search_reference import Codes, beam_search_reference
from models.kernels.attend_cpu import attend_prefix
from models.kernels.beam_step_cpu import (
    best_children,
    branching_beams,
    log_softmax_inplace,
    mark_valid_codes,
)

V = 4


def make_logits(batch_size: int, num_codes: int, *, seed: int, num_values: int) -> CodeLogits:
    """A model that is a table: any prefix has its own logits; few `num_values` make many ties."""
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for length in range(num_codes):
        drawn = torch.randint(num_values, (batch_size, V**length, V), generator=generator)
        tables.append(drawn.float() * 0.37)

    def code_logits(prefix_Ql: Tensor, request_Q: Tensor) -> Tensor:
        number_Q = torch.zeros(len(prefix_Ql), dtype=torch.int64)
        for code_Q in prefix_Ql.unbind(dim=1):
            number_Q = number_Q * V + code_Q
        return tables[prefix_Ql.shape[1]][request_Q, number_Q]

    return code_logits


@dataclass
class Case:
    codes: list[Codes]
    available: list[bool]
    num_codes: int
    batch_size: int
    k: int
    beam: int
    seed: int
    num_values: int
    exclude: list[list[int]] | None

    @property
    def trie(self) -> Trie:
        trie = Trie(self.num_codes, V)
        for row, codes in enumerate(self.codes):
            trie.insert(codes, row)
        for row, live in enumerate(self.available):
            trie.set_available(row, live)
        return trie

    @property
    def items(self) -> list[tuple[Codes, int]]:
        return [(codes, row) for row, codes in enumerate(self.codes) if self.available[row]]

    @property
    def logits(self) -> CodeLogits:
        return make_logits(self.batch_size, self.num_codes, seed=self.seed, num_values=self.num_values)

    @property
    def exclude_arrays(self) -> list[np.ndarray] | None:
        return None if self.exclude is None else [np.array(rows, np.int64) for rows in self.exclude]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_codes = draw(st.integers(2, 4))
    full = [tuple(int(c) for c in np.unravel_index(n, (V,) * num_codes)) for n in range(V**num_codes)]
    numbers = draw(st.lists(st.integers(0, len(full) - 1), unique=True, max_size=30))
    codes = draw(st.sampled_from([[full[n] for n in numbers], full[: V**3], [(1,) * num_codes]]))
    mostly = draw(st.sampled_from([1.0, 0.7, 0.1]))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    batch_size = draw(st.integers(1, 3))
    rows = st.lists(st.integers(-1, len(codes) - 1), max_size=20)
    return Case(
        codes=codes,
        available=(random.random(len(codes)) < mostly).tolist(),
        num_codes=num_codes,
        batch_size=batch_size,
        k=draw(st.integers(1, 12)),
        beam=draw(st.sampled_from([1, 2, 5, 300])),
        seed=draw(st.integers(0, 1000)),
        num_values=draw(st.sampled_from([1, 2, 10_000])),
        exclude=draw(st.none() | st.lists(rows, min_size=batch_size, max_size=batch_size)),
    )


def search(case: Case) -> SearchResult:
    return beam_search(
        case.logits,
        case.trie,
        batch_size=case.batch_size,
        k=case.k,
        beam=case.beam,
        exclude=case.exclude_arrays,
    )


@settings(max_examples=120, deadline=None)
@given(case=cases())
def test_it_finds_what_the_reference_finds(case: Case) -> None:
    result = search(case)
    expected = beam_search_reference(
        case.logits, case.items, batch_size=case.batch_size, k=case.k, beam=case.beam, exclude=case.exclude
    )
    assert result.row_BK.shape == result.score_BK.shape == (case.batch_size, case.k)
    for b, found in enumerate(expected):
        padding = case.k - len(found)
        assert result.row_BK[b].tolist() == [row for row, _, _ in found] + [-1] * padding
        assert result.score_BK[b].tolist() == [score for _, score, _ in found] + [-np.inf] * padding
        last = {tuple(codes) for codes in result.prefixes[-1][b].tolist()} - {(-1,) * case.num_codes}
        assert last == {codes for _, _, codes in found}


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_beam_as_wide_as_the_catalogue_is_exact(case: Case) -> None:
    case.beam = V**4
    result = search(case)
    for b in range(case.batch_size):
        scored = []
        for codes, row in case.items:
            if case.exclude is not None and row in case.exclude[b]:
                continue
            score = np.float32(0)
            for depth in range(case.num_codes):
                children = sorted({other[depth] for other, _ in case.items if other[:depth] == codes[:depth]})
                prefix = torch.tensor(codes[:depth], dtype=torch.int64).expand(1, -1)
                log_probability = case.logits(prefix, torch.tensor([b]))[0, children].numpy()
                log_softmax_inplace(log_probability)
                score += log_probability[children.index(codes[depth])]
            scored.append((-score, codes, row))
        assert [r for r in result.row_BK[b].tolist() if r >= 0] == [r for _, _, r in sorted(scored)][: case.k]


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_a_request_does_not_depend_on_its_batch(case: Case) -> None:
    together = search(case)
    for b in range(case.batch_size):
        alone = beam_search(
            lambda prefix, request, b=b: case.logits(prefix, request + b),
            case.trie,
            batch_size=1,
            k=case.k,
            beam=case.beam,
            exclude=None if case.exclude_arrays is None else case.exclude_arrays[b : b + 1],
        )
        assert torch.equal(alone.row_BK[0], together.row_BK[b])
        assert torch.equal(alone.score_BK[0], together.score_BK[b])


def test_beams_are_not_spent_on_what_cannot_be_returned() -> None:
    codes = [(a, b, 0) for a in range(V) for b in range(V)]
    case = Case(codes, [True] * 16, 3, 1, k=3, beam=1, seed=5, num_values=10_000, exclude=None)
    best = int(search(case).row_BK[0, 0])
    neighbours = [row for row in range(16) if codes[row][0] == codes[best][0]]
    case.exclude = [neighbours]
    assert int(search(case).row_BK[0, 0]) not in [-1, *neighbours]
    case.exclude, case.available = None, [row not in neighbours for row in range(16)]
    assert int(search(case).row_BK[0, 0]) not in [-1, *neighbours]


def test_prefixes_of_each_level_are_the_beams() -> None:
    codes = [(a, b, 0) for a in range(V) for b in range(V)]
    result = search(Case(codes, [True] * 16, 3, 2, k=3, beam=4, seed=5, num_values=10_000, exclude=None))
    assert [tuple(prefix.shape) for prefix in result.prefixes] == [(2, 4, 1), (2, 4, 2), (2, 3, 3)]
    for b in range(2):
        beams = [tuple(prefix) for prefix in result.prefixes[1][b].tolist()]
        assert beams == sorted(set(beams))


def test_scores_of_all_items_are_a_distribution_whatever_is_excluded() -> None:
    codes = [(a, b, c) for a in range(V) for b in range(2) for c in range(3) if (a + b + c) % 3]
    case = Case(codes, [True] * len(codes), 3, 2, k=50, beam=50, seed=5, num_values=3, exclude=None)
    whole = search(case).score_BK.exp()
    torch.testing.assert_close(whole.sum(1), torch.ones(2))
    case.exclude = [[0, 1], []]
    rest = search(case)
    hidden = whole[0].sum() - rest.score_BK[0].exp().sum()
    kept = dict(zip(search(case).row_BK[0].tolist(), rest.score_BK[0].tolist(), strict=True))
    assert 0 < hidden < 1
    assert not {0, 1} & kept.keys()


def test_the_network_is_asked_only_where_there_is_a_choice() -> None:
    asked: list[int] = []

    def logits(prefix_Ql: Tensor, request_Q: Tensor) -> Tensor:
        asked.append(len(prefix_Ql))
        return torch.zeros(len(prefix_Ql), V)

    trie = Trie(3, V)
    for row, codes in enumerate([(0, 0, 0), (0, 1, 0), (1, 2, 3), (1, 2, 1)]):
        trie.insert(codes, row)
    found = beam_search(logits, trie, batch_size=1, k=4, beam=4)
    assert asked == [1, 1, 1]  # the root, (0,) and (1, 2)
    torch.testing.assert_close(found.score_BK.exp(), torch.full((1, 4), 0.25))


def test_what_is_precompiled_is_what_a_search_calls() -> None:
    precompile()
    compiled = [branching_beams, best_children, attend_prefix, mark_valid_codes]
    known = [list(function.signatures) for function in compiled]
    assert all(known)
    codes = [(a, b, c) for a in range(V) for b in range(V) for c in range(2)]
    search(Case(codes, [True] * 32, 3, 2, k=9, beam=5, seed=5, num_values=3, exclude=[[1], []]))
    search(Case(codes, [False] * 32, 3, 1, k=9, beam=5, seed=5, num_values=3, exclude=None))
    assert [list(function.signatures) for function in compiled] == known


def test_an_empty_trie_and_an_empty_batch() -> None:
    logits = make_logits(2, 3, seed=0, num_values=5)
    result = beam_search(logits, Trie(3, V), batch_size=2, k=4, beam=2)
    assert result.row_BK.tolist() == [[-1] * 4] * 2
    assert beam_search(
        make_logits(0, 3, seed=0, num_values=5), Trie(3, V), batch_size=0, k=4, beam=2
    ).row_BK.shape == (0, 4)


def test_wrong_arguments_are_refused() -> None:
    logits = make_logits(2, 3, seed=0, num_values=5)
    with pytest.raises(ValueError, match="at least 1"):
        beam_search(logits, Trie(3, V), batch_size=2, k=0, beam=2)
    with pytest.raises(ValueError, match="lists of excluded"):
        beam_search(logits, Trie(3, V), batch_size=2, k=1, beam=2, exclude=[np.zeros(0, np.int64)])
