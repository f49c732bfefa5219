"""What the internal services refuse: sizes, ids, actions and numbers of requests.

One check collects all violations of a request, so that a caller sees them at once.
"""

import math
from collections.abc import Sequence

from protos.headrace.v1.events_pb2 import Action, HistoryEvent
from protos.headrace.v1.generator_pb2 import Candidates
from protos.headrace.v1.recommend_pb2 import CandidateSource
from services.errors import InvalidRequest
from services.wire.source_masks import EVERY_SOURCE, mask_of

MAX_K = 512
MAX_CANDIDATES = 2_048
MAX_HISTORY = 1_000
MAX_IDS = 10_000
MAX_ID_LENGTH = 256
# Year 2262: what a 64-bit count of nanoseconds can hold, as in Arrow and numpy.
MAX_TIME_MS = 9_223_372_036_854
_BEAM = mask_of(CandidateSource.CANDIDATE_SOURCE_BEAM)


class Violations:
    """Collects (field, problem) pairs; `done` raises InvalidRequest if there are any."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def check(self, ok: bool, field: str, problem: str) -> None:
        """Notes a violation unless `ok`."""
        if not ok:
            self._found.append((field, problem))

    def done(self) -> None:
        """Raises InvalidRequest with all violations."""
        if self._found:
            raise InvalidRequest(*self._found)

    def size(self, value: int, field: str, most: int) -> None:
        """An optional size: 0 for the default, or 1 to `most`."""
        self.check(0 <= value <= most, field, f"must be 1 to {most}, or 0 for the default")

    def ids(self, item_ids: Sequence[str], field: str, most: int = MAX_IDS) -> None:
        """A list of item ids."""
        self.check(len(item_ids) <= most, field, f"has {len(item_ids)} entries; at most {most} are taken")
        for i, item_id in enumerate(item_ids[:most]):
            self._id(item_id, f"{field}[{i}]")

    def history(self, history: Sequence[HistoryEvent]) -> None:
        """A user's history, oldest first."""
        self.check(len(history) <= MAX_HISTORY, "history", f"at most {MAX_HISTORY} events are taken")
        for i, event in enumerate(history[:MAX_HISTORY]):
            self._id(event.item_id, f"history[{i}].item_id")
            known = event.action in Action.values() and event.action != Action.ACTION_UNSPECIFIED
            self.check(known, f"history[{i}].action", "is no action")
            self.time(event.event_time_ms, f"history[{i}].event_time_ms")

    def candidates(self, candidates: Candidates) -> None:
        """Candidates to be ranked."""
        item_ids, masks, scores = candidates.item_ids, candidates.source_masks, candidates.beam_scores
        same = len(item_ids) == len(masks) == len(scores)
        self.check(same, "candidates", "the columns must be of one length")
        self.ids(item_ids, "candidates.item_ids", MAX_CANDIDATES)
        for i, (mask, score) in enumerate(zip(masks[:MAX_CANDIDATES], scores, strict=False)):
            self.check(not mask & ~EVERY_SOURCE, f"candidates.source_masks[{i}]", "names no candidate source")
            known = not mask & _BEAM or math.isfinite(score)
            self.check(known, f"candidates.beam_scores[{i}]", "is not a finite number")

    def sources(self, sources: Sequence[int]) -> None:
        """Candidate sources to leave out."""
        for i, source in enumerate(sources):
            known = source in CandidateSource.values() and source != 0
            self.check(known, f"disabled_sources[{i}]", "is no candidate source")

    def time(self, time_ms: int, field: str) -> None:
        """Milliseconds since the Unix epoch; 0 where a request means now."""
        self.check(0 <= time_ms <= MAX_TIME_MS, field, "is not a time in milliseconds since the Unix epoch")

    def _id(self, item_id: str, field: str) -> None:
        self.check(0 < len(item_id) <= MAX_ID_LENGTH, field, f"must have 1 to {MAX_ID_LENGTH} characters")
