"""Requests of the internal services: all violations at once, each by its path."""

import math

import pytest

from protos.headrace.v1.events_pb2 import HistoryEvent
from protos.headrace.v1.generator_pb2 import Candidates
from services.errors import InvalidRequest
from services.wire.validation import MAX_IDS, MAX_TIME_MS, RequestCheck


def fields(found: RequestCheck) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        found.done()
    return [field for field, _ in caught.value.violations]


def test_a_good_request_passes() -> None:
    found = RequestCheck()
    found.size(0, "k", 512)
    found.size(512, "beam", 512)
    found.history([HistoryEvent(item_id="a", action=2, event_time_ms=1)])
    found.candidates(Candidates(item_ids=["a", "b"], source_masks=[2, 4], beam_scores=[-1.0, float("nan")]))
    found.ids(["a"] * MAX_IDS, "exclude_item_ids")
    found.sources([1, 6])
    found.time(0, "request_time_ms")
    found.done()


def test_all_violations_are_named() -> None:
    found = RequestCheck()
    found.size(-1, "k", 512)
    found.history([HistoryEvent(item_id="a" * 257, action=0, event_time_ms=-1, value=math.nan)])
    found.candidates(Candidates(item_ids=["", "b"], source_masks=[2, 1], beam_scores=[float("inf"), 0.0]))
    found.sources([0])
    found.time(MAX_TIME_MS + 1, "request_time_ms")
    assert fields(found) == [
        "k",
        "history[0].item_id",
        "history[0].action",
        "history[0].value",
        "history[0].event_time_ms",
        "candidates.item_ids[0]",
        "candidates.beam_scores[0]",
        "candidates.source_masks[1]",
        "disabled_sources[0]",
        "request_time_ms",
    ]


def test_of_too_many_entries_the_surplus_is_not_looked_at() -> None:
    found = RequestCheck()
    found.sources([9] * 1_000_000)
    named = fields(found)
    assert named == ["disabled_sources", *(f"disabled_sources[{i}]" for i in range(6))]


def test_columns_of_different_lengths_are_refused() -> None:
    found = RequestCheck()
    found.candidates(Candidates(item_ids=["a", "b"], source_masks=[2]))
    assert fields(found) == ["candidates"]
