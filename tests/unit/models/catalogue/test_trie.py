"""The trie of valid SIDs against a plain set of code tuples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue import trie_level
from models.catalogue.trie import Trie
from models.kernels.beam_step_cpu import open_children

V = 5


def children_by_hand(items: dict[tuple[int, ...], bool], prefix: tuple[int, ...]) -> list[int]:
    """The codes after `prefix` of available items, ascending."""
    depth = len(prefix)
    return sorted({codes[depth] for codes, live in items.items() if live and codes[:depth] == prefix})


def assert_same(trie: Trie, items: dict[tuple[int, ...], bool]) -> None:
    frontier = {(): 0}
    for depth, level in enumerate(trie.levels):
        found = {}
        for prefix in sorted(frontier):
            codes, nodes = open_children(level, frontier[prefix], V)
            assert codes.tolist() == children_by_hand(items, prefix)
            found |= {(*prefix, int(code)): int(node) for code, node in zip(codes, nodes, strict=True)}
        for prefix, node in found.items():
            assert level.live_N[node] == sum(live for c, live in items.items() if c[: depth + 1] == prefix)
        frontier = found
    assert [trie.row_N[node] for node in frontier.values()] == [trie.row_of(codes) for codes in frontier]


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
        patch.setattr(trie_level, "MAX_TAIL", max_tail)
        trie = Trie(len(entries[0][0]), V)
        items: dict[tuple[int, ...], bool] = {}
        assert_same(trie, items)
        for row, (codes, live) in enumerate(entries):
            trie.insert(codes, row, available=live)
            items[codes] = live
            if row % 7 == 0:
                assert_same(trie, items)
        at_once = Trie(trie.num_codes, V)
        half = len(entries) // 2
        for part in (entries[:half], entries[half:]):
            codes_NC = np.array([codes for codes, _ in part], np.int64).reshape(-1, trie.num_codes)
            at_once.insert_many(codes_NC, np.array([live for _, live in part], np.bool_))
        assert_same(at_once, items)
        copy, before = trie.copy(), dict(items)
        for one in (trie, at_once, copy):
            assert one.codes_of(np.arange(len(entries))).tolist() == [list(codes) for codes, _ in entries]
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
    assert trie.node_NC[0, 2] == trie.node_NC[1, 2]
    assert trie.row_N[trie.node_NC[[1, 0], 3]].tolist() == [1, 0]


def test_wrong_insertions_are_refused_and_change_nothing() -> None:
    trie = Trie(3, V)
    trie.insert((0, 0, 0), 0)
    for codes, row in [((0, 0, 0), 1), ((0, 0, V), 1), ((0, 0), 1), ((0, 0, -1), 1), ((1, 1, 1), 3)]:
        with pytest.raises(ValueError):
            trie.insert(codes, row)
    for codes in ([(0, 0, 0)], [(1, 1, 1), (1, 1, 1)], [(0, 0, V)], [(0, 0)]):
        with pytest.raises(ValueError):
            trie.insert_many(np.array(codes), np.ones(len(codes), np.bool_))
    with pytest.raises(ValueError, match="no row"):
        trie.set_available(1, True)
    with pytest.raises(ValueError, match="at least"):
        Trie(1, V)
    assert_same(trie, {(0, 0, 0): True})
    assert trie.row_of((0, 0, 1)) is None
