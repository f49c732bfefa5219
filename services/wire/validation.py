"""What a request may hold, at the gateway as at the services behind it: sizes, ids, actions and numbers.

One check collects all that is wrong with a request, so that a caller sees it at once. What an id is, and what
is wrong with events and items, `streaming.messages.events` says.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from protos.headrace.v1.events_pb2 import Action, HistoryEvent
from protos.headrace.v1.generator_pb2 import Candidates
from protos.headrace.v1.recommend_pb2 import CandidateSource
from services.errors import InvalidRequest
from services.wire.source_masks import EVERY_SOURCE, SOURCES, mask_of
from streaming.messages.events import id_problem

MAX_K = 512
MAX_CANDIDATES = 2_048
MAX_HISTORY = 1_000
MAX_IDS = 10_000
# Year 2262: what a 64-bit count of nanoseconds can hold, as in Arrow and numpy.
MAX_TIME_MS = 9_223_372_036_854
# Looked up for each event: the enum's own `values()` makes a list at every call.
_ACTIONS = frozenset(Action.values()) - {Action.ACTION_UNSPECIFIED}
_BEAM = mask_of(CandidateSource.CANDIDATE_SOURCE_BEAM)


class RequestCheck:
    """Collects (field, problem) pairs, `prefix` before each field; `done` raises them as InvalidRequest."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._found: list[tuple[str, str]] = []

    def that(self, ok: bool, field: str, problem: str) -> None:
        """Notes a problem unless `ok`."""
        if not ok:
            self._found.append((self._prefix + field, problem))

    def found(self, problems: Iterable[tuple[str, str]], inside: str = "") -> None:
        """Takes over (field, problem) pairs of a part; `inside` names the part."""
        for field, problem in problems:
            self.that(False, inside + field, problem)

    def done(self) -> None:
        """Raises InvalidRequest with all that was found."""
        if self._found:
            raise InvalidRequest(*self._found)

    def size(self, value: int, field: str, most: int) -> None:
        """An optional size: 0 for the default, or 1 to `most`."""
        self.that(0 <= value <= most, field, f"must be 1 to {most}, or 0 for the default")

    def length(self, values: Sequence[Any], field: str, most: int) -> None:
        """A list of at most `most` entries."""
        self.that(len(values) <= most, field, f"has {len(values)} entries; at most {most} are taken")

    def id(self, value: str, field: str) -> None:
        """An id of a user, an item or a request."""
        problem = id_problem(value)
        self.that(problem is None, field, problem or "")

    def ids(self, values: Sequence[str], field: str, most: int = MAX_IDS) -> None:
        """A list of ids."""
        self.length(values, field, most)
        for i, value in enumerate(values[:most]):
            self.id(value, f"{field}[{i}]")

    def history(self, history: Sequence[HistoryEvent]) -> None:
        """A user's history, oldest first."""
        self.length(history, "history", MAX_HISTORY)
        for i, event in enumerate(history[:MAX_HISTORY]):
            self.id(event.item_id, f"history[{i}].item_id")
            self.that(event.action in _ACTIONS, f"history[{i}].action", "is not an action")
            self.that(math.isfinite(event.value), f"history[{i}].value", "is not a finite number")
            self.time(event.event_time_ms, f"history[{i}].event_time_ms")

    def candidates(self, candidates: Candidates) -> None:
        """Candidates to be ranked."""
        item_ids, masks, scores = candidates.item_ids, candidates.source_masks, candidates.beam_scores
        same = len(item_ids) == len(masks) == len(scores)
        self.that(same, "candidates", "the columns must be of one length")
        self.ids(item_ids, "candidates.item_ids", MAX_CANDIDATES)
        for i, (mask, score) in enumerate(zip(masks[:MAX_CANDIDATES], scores, strict=False)):
            self.that(not mask & ~EVERY_SOURCE, f"candidates.source_masks[{i}]", "names no candidate source")
            known = not mask & _BEAM or math.isfinite(score)
            self.that(known, f"candidates.beam_scores[{i}]", "is not a finite number")

    def sources(self, sources: Sequence[int]) -> None:
        """Candidate sources to leave out."""
        self.length(sources, "disabled_sources", len(SOURCES))
        for i, source in enumerate(sources[: len(SOURCES)]):
            self.that(source in SOURCES, f"disabled_sources[{i}]", "is not a candidate source")

    def time(self, time_ms: int, field: str) -> None:
        """Milliseconds since the Unix epoch; 0 where a request means now."""
        self.that(0 <= time_ms <= MAX_TIME_MS, field, "is not a time in milliseconds since the Unix epoch")
