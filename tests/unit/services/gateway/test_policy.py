"""Policy and fallback: what may be answered, what fills an answer up, and what is said of a gap."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.recommend_pb2 import (
    CandidateSource,
    Recommendation,
    RecommendRequest,
    ShortfallReason,
)
from services.gateway.item_view import ItemView
from services.gateway.policy import Policy, choose, fill, popular, shortfall
from services.gateway.ranking import RankedItem
from services.wire.source_masks import mask_of

BEAM = CandidateSource.CANDIDATE_SOURCE_BEAM
FALLBACK = CandidateSource.CANDIDATE_SOURCE_FALLBACK
NEW = CandidateSource.CANDIDATE_SOURCE_NEW


def view(*items: Item) -> ItemView:
    catalogue = ItemView()
    for item in items:
        catalogue.upsert(item)
    return catalogue


def ranked(*item_ids: str, new: Sequence[str] = ()) -> list[RankedItem]:
    return [
        RankedItem(item_id, 10.0 - place, mask_of(BEAM, NEW) if item_id in new else mask_of(BEAM))
        for place, item_id in enumerate(item_ids)
    ]


def ids(answer: Sequence[Recommendation]) -> list[str]:
    return [item.item_id for item in answer]


def policy(*blocked: str, categories: Sequence[str] = ()) -> Policy:
    return Policy(blocked=frozenset(blocked), categories=frozenset(categories))


CATALOGUE = view(
    Item(item_id="a", title="A", categories=["jazz"], announced_time_ms=1),
    Item(item_id="b", title="B", categories=["rock", "jazz"], announced_time_ms=3),
    Item(item_id="c", title="C", categories=["rock"], announced_time_ms=2, unavailable=True),
    Item(item_id="d", title="D", announced_time_ms=2),
)


def test_choose_keeps_the_order_and_answers_each_item_once() -> None:
    answer = choose(ranked("b", "a", "b", "d"), policy(), CATALOGUE, 3)
    assert ids(answer) == ["b", "a", "d"]
    assert [item.title for item in answer] == ["B", "A", "D"]


def test_one_place_of_ten_is_for_a_new_item() -> None:
    thirty = [f"i{n}" for n in range(30)]
    model = ranked(*thirty, new=["i20", "i25"])
    assert ids(choose(model, policy(), CATALOGUE, 9)) == [f"i{n}" for n in range(9)]
    ten = choose(model, policy(), CATALOGUE, 10)
    assert ids(ten) == [*(f"i{n}" for n in range(9)), "i20"]
    assert [NEW in item.sources for item in ten] == [False] * 9 + [True]
    assert [item.score for item in ten] == sorted((item.score for item in ten), reverse=True)
    assert ids(choose(model, policy("i20"), CATALOGUE, 10))[-1] == "i25"
    assert ids(choose(model, policy("i20", "i25"), CATALOGUE, 10)) == [f"i{n}" for n in range(10)]
    model = ranked(*thirty, new=["i3", "i20"])
    assert ids(choose(model, policy(), CATALOGUE, 10)) == [f"i{n}" for n in range(10)]
    assert ids(choose(model, policy(), CATALOGUE, 20)) == [*(f"i{n}" for n in range(19)), "i20"]


def test_choose_leaves_out_blocked_and_unavailable_items() -> None:
    assert ids(choose(ranked("a", "b", "c", "d"), policy("b"), CATALOGUE, 4)) == ["a", "d"]


def test_a_category_filter_needs_a_known_category() -> None:
    answer = choose(ranked("a", "b", "d", "never-announced"), policy(categories=["rock"]), CATALOGUE, 4)
    assert ids(answer) == ["b"]


def test_an_item_that_only_the_release_knows_may_be_answered() -> None:
    answer = choose(ranked("never-announced"), policy(), CATALOGUE, 1)
    assert ids(answer) == ["never-announced"]
    assert answer[0].title == ""


def test_seen_items_are_blocked_unless_asked_for() -> None:
    assert Policy.of(RecommendRequest(exclude_item_ids=["x"]), {"a"}).blocked == {"a", "x"}
    assert Policy.of(RecommendRequest(include_seen=True), {"a"}).blocked == frozenset()


def test_fill_adds_popular_items_below_the_chosen_ones() -> None:
    chosen = choose(ranked("b"), policy(), CATALOGUE, 3)
    answer = fill(chosen, popular(["ghost", "b", "d"], CATALOGUE), policy(), CATALOGUE, 3)
    assert ids(answer) == ["b", "d", "a"]
    assert [list(item.sources) for item in answer[1:]] == [[FALLBACK], [FALLBACK]]
    scores = [item.score for item in answer]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_shortfall_tells_an_empty_shelf_from_a_filter() -> None:
    assert shortfall(3, 3, CATALOGUE) == ShortfallReason.SHORTFALL_REASON_UNSPECIFIED
    assert shortfall(3, 4, CATALOGUE) == ShortfallReason.SHORTFALL_REASON_CATALOGUE_EXHAUSTED
    assert shortfall(2, 3, CATALOGUE) == ShortfallReason.SHORTFALL_REASON_FILTERED


@settings(deadline=None)
@given(
    model=st.lists(st.sampled_from("abcdefgh")),
    trends=st.lists(st.sampled_from("abcdefghxyz")),
    blocked=st.sets(st.sampled_from("abcdefgh")),
    unavailable=st.sets(st.sampled_from("abcdefgh")),
    k=st.integers(1, 10),
)
def test_an_answer_is_as_long_as_the_shelf_allows(
    model: list[str], trends: list[str], blocked: set[str], unavailable: set[str], k: int
) -> None:
    catalogue = view(*(Item(item_id=i, unavailable=i in unavailable) for i in "abcdefgh"))
    rules = policy(*blocked)
    answer = choose(ranked(*model), rules, catalogue, k)
    answer = ids(fill(answer, popular(trends, catalogue), rules, catalogue, k))
    allowed = set("abcdefgh") - blocked - unavailable
    assert len(answer) == len(set(answer)) == min(k, len(allowed))
    assert set(answer) <= allowed


def test_the_newest_available_items_come_first() -> None:
    assert list(CATALOGUE.newest()) == ["b", "d", "a"]


def test_an_item_changes_its_place_and_is_withdrawn() -> None:
    catalogue = view(Item(item_id="a", announced_time_ms=1), Item(item_id="b", announced_time_ms=2))
    catalogue.upsert(Item(item_id="a", announced_time_ms=3))
    assert list(catalogue.newest()) == ["a", "b"]
    catalogue.upsert(Item(item_id="a", announced_time_ms=3, unavailable=True))
    assert list(catalogue.newest()) == ["b"]
    assert (len(catalogue), catalogue.num_available) == (2, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans())))
def test_the_view_equals_a_plain_dictionary(changes: list[tuple[str, int, bool]]) -> None:
    catalogue, expected = ItemView(), dict[str, tuple[int, bool]]()
    for item_id, time_ms, available in changes:
        catalogue.upsert(Item(item_id=item_id, announced_time_ms=time_ms, unavailable=not available))
        expected[item_id] = (time_ms, available)
    newest = sorted(((t, i) for i, (t, up) in expected.items() if up), reverse=True)
    assert list(catalogue.newest()) == [item_id for _, item_id in newest]
    assert len(catalogue) == len(expected)
