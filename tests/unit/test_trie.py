"""The trie of valid SIDs against a plain set of code tuples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import trie as trie_module
from models.trie import Trie

V = 5


def children_by_hand(items: dict[tuple[int, ...], bool], prefix: tuple[int, ...]) -> list[int]:
    """The codes after `prefix` of available items, ascending."""
    depth = len(prefix)
    return sorted({codes[depth] for codes, live in items.items() if live and codes[:depth] == prefix})


def assert_same(trie: Trie, items: dict[tuple[int, ...], bool]) -> None:
    view = trie.view()
    frontier = {(): 0}
    for depth in range(trie.num_codes):
        prefixes = sorted(frontier)
        node_Q = torch.tensor([frontier[prefix] for prefix in prefixes], dtype=torch.int64)
        query_R, code_R, child_R = view.children(depth, node_Q)
        found = list(zip(query_R.tolist(), code_R.tolist(), strict=True))
        assert found == [(q, c) for q, p in enumerate(prefixes) for c in children_by_hand(items, p)]
        frontier = {(*prefixes[q], c): n for (q, c), n in zip(found, child_R.tolist(), strict=True)}
        for prefix, node in frontier.items():
            below = sum(live for codes, live in items.items() if codes[: depth + 1] == prefix)
            assert int(view.num_available(depth + 1, torch.tensor([node]))) == below
    rows = view.rows(torch.tensor(list(frontier.values()), dtype=torch.int64)).tolist()
    assert rows == [trie.row_of(codes) for codes in frontier]


@st.composite
def catalogues(draw: st.DrawFn) -> list[tuple[tuple[int, ...], bool]]:
    num_codes = draw(st.integers(2, 4))
    codes = st.tuples(*[st.integers(0, V - 1)] * num_codes)
    unique = draw(st.lists(codes, unique=True, max_size=40))
    return [(c, draw(st.booleans())) for c in unique] or [((0,) * num_codes, False)]


@settings(max_examples=40, deadline=None)
@given(entries=catalogues(), max_tail=st.sampled_from([0, 3, 1000]))
def test_children_are_those_of_the_items_after_every_change(
    entries: list[tuple[tuple[int, ...], bool]], max_tail: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_module, "_MAX_TAIL", max_tail)
        trie = Trie(len(entries[0][0]), V)
        items: dict[tuple[int, ...], bool] = {}
        assert_same(trie, items)
        for row, (codes, live) in enumerate(entries):
            trie.insert(codes, row, available=live)
            items[codes] = live
            if row % 7 == 0:
                assert_same(trie, items)
        copy, before = trie.copy(), dict(items)
        for row, (codes, live) in enumerate(entries):
            trie.set_available(row, not live)
            items[codes] = not live
        assert_same(trie, items)
        assert_same(copy, before)


def test_full_fan_out() -> None:
    items = {(a, b, c): True for a in range(V) for b in range(V) for c in range(V)}
    trie = Trie(3, V)
    for row, codes in enumerate(items):
        trie.insert(codes, row)
    assert_same(trie, items)


def test_nodes_of_a_row_lead_to_it() -> None:
    trie = Trie(4, V)
    trie.insert((1, 2, 3, 4), 0)
    trie.insert((1, 2, 3, 0), 1)
    view = trie.view()
    assert view.nodes(3, torch.tensor([0, 1])).unique().numel() == 1
    assert view.rows(view.nodes(4, torch.tensor([1, 0]))).tolist() == [1, 0]


def test_wrong_insertions_are_refused_and_change_nothing() -> None:
    trie = Trie(3, V)
    trie.insert((0, 0, 0), 0)
    for codes, row in [((0, 0, 0), 1), ((0, 0, V), 1), ((0, 0), 1), ((0, 0, -1), 1), ((1, 1, 1), 3)]:
        with pytest.raises(ValueError):
            trie.insert(codes, row)
    with pytest.raises(ValueError, match="no row"):
        trie.set_available(1, True)
    with pytest.raises(ValueError, match="at least"):
        Trie(1, V)
    assert_same(trie, {(0, 0, 0): True})
    assert trie.row_of((0, 0, 1)) is None
