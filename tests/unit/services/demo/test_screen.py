from collections.abc import Sequence

import pytest
from rich.console import Console

from protos.headrace.v1 import items_pb2, learner_pb2, recommend_pb2, release_pb2
from services.demo.findings import Findings, promises_panel
from services.demo.moments import unlike
from services.demo.screen import curve_panel, quality_table, recommendations_table, releases_table
from services.demo.traffic import problem_of

KNOWN = {"a", "b", "c"}


def answer(item_ids: Sequence[str], **fields: object) -> recommend_pb2.RecommendResponse:
    recommendations = [recommend_pb2.Recommendation(item_id=item_id) for item_id in item_ids]
    return recommend_pb2.RecommendResponse(recommendations=recommendations, **fields)  # type: ignore[arg-type]


def test_a_full_answer_of_known_items_has_no_problem() -> None:
    assert problem_of(answer(["a", "b"], release_id="r"), k=2, known=KNOWN) is None


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answer(["a", "a"], release_id="r"), "twice"),
        (answer(["a", "x"], release_id="r"), "not in the catalogue"),
        (answer(["a"], release_id="r"), "no reason"),
        (answer(["a", "b"]), "neither"),
    ],
)
def test_every_flaw_of_an_answer_is_named(response: recommend_pb2.RecommendResponse, words: str) -> None:
    problem = problem_of(response, k=2, known=KNOWN)
    assert problem is not None
    assert words in problem


def test_an_unlike_taste_is_the_category_rarest_in_the_history() -> None:
    categories = {"h1": "drama", "h2": "drama", "p1": "drama", "p2": "comedy", "p3": "comedy", "p4": "drama"}
    items = {
        item_id: items_pb2.Item(item_id=item_id, categories=[name]) for item_id, name in categories.items()
    }
    chosen = unlike(["h1", "h2"], ["p1", "p2", "p3", "p4"], items, 2)
    assert [item.item_id for item in chosen] == ["p2", "p3"]


def test_the_curve_is_drawn_with_both_lines() -> None:
    curve = [
        learner_pb2.QualityPoint(num_events=n, recall_at_10=0.1, popularity_recall_at_10=0.05)
        for n in (0, 500, 1000)
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(curve_panel(curve))
    assert "headrace" in capture.get()
    assert "popularity" in capture.get()


def test_releases_stand_in_the_order_of_their_making_each_under_its_heading() -> None:
    releases = [
        release_pb2.Release(release_id=name, created_time_ms=made, state=state, reason=f"why {name}")
        for name, made, state in (("second", 2, 2), ("first", 1, 3))
    ]
    table = releases_table(releases)
    assert [list(column.cells) for column in table.columns] == [
        ["first", "second"],
        ["retired", "live"],
        ["why first", "why second"],
    ]


def test_what_moved_into_an_answer_is_marked_beside_the_one_before() -> None:
    assert [column.header for column in recommendations_table("before", answer(["a"])).columns][
        -1
    ] == "brought by"
    change = recommendations_table("after", answer(["a", "b"]), before=["b", "c"]).columns[-1]
    assert (change.header, list(change.cells)) == ("change", ["moved in", ""])


def test_a_segment_without_events_has_dashes() -> None:
    rows = [
        learner_pb2.OnlineQuality(segment="all", num_events=1_200, recall_at_10=0.25),
        learner_pb2.OnlineQuality(segment="repeat"),
    ]
    table = quality_table(learner_pb2.StatusResponse(quality=rows))
    assert [list(column.cells) for column in table.columns] == [
        ["all", "repeat"],
        ["1,200", "0"],
        ["0.2500", "-"],
        ["0.0000", "-"],
        ["0.0000", "-"],
    ]


def test_broken_promises_are_listed() -> None:
    findings = Findings()
    findings.promise(True, "kept")
    findings.promise(False, "late")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(promises_panel(findings, 1.0))
    assert "not kept: late" in capture.get()
    assert "kept: kept" not in capture.get()
