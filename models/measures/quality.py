"""Prequential quality: how well events were predicted before they were learned.

Owns the windows, the segments and the curve. Which events are scored, and how, is the learner's; each one
comes here as a 0-based rank (-1: not found).

Shapes: N scored events, C codes of an item.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float64Array

K = 10
# A user is cold before this many events, an item new before this many wishes.
COLD_USER_EVENTS = 5
NEW_ITEM_EVENTS = 5
SEGMENTS = ("all", "warm_user", "cold_user", "old_item", "new_item", "repeat")
_HIT, _GAIN, _BASELINE, _FIGURES = 0, 1, 2, 3
_MAX_CURVE_POINTS = 200
_FIRST_CURVE_STEP = 256


@dataclass(frozen=True, kw_only=True)
class ScoredEvent:
    """One predicted event: its rank in the answer and in the popularity baseline (-1: not in it), whose
    it was, and for each code of the item whether the beam found the right prefix so far (empty: no beam).

    `is_repeat`: the user had the item already. Answers leave those out unless asked for, so repeats are
    scored with all of a user's items allowed, and count in their own segment only.
    """

    rank: int
    baseline_rank: int
    is_cold_user: bool
    is_new_item: bool
    is_repeat: bool
    prefix_hits_C: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class SegmentQuality:
    """Means over the last window of one segment's scored events."""

    segment: str
    num_events: int
    recall_at_10: float
    ndcg_at_10: float
    popularity_recall_at_10: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Recall@10 of model and popularity over the scored events since the point before, after `num_events`."""

    num_events: int
    recall_at_10: float
    popularity_recall_at_10: float


class PrequentialQuality:
    """The last `window` scored events of each segment, and a curve over the whole stream."""

    def __init__(self, window: int, num_codes: int) -> None:
        self.window = window
        self.num_codes = num_codes
        self._recent: dict[str, list[list[float]]] = {segment: [] for segment in SEGMENTS}
        self._prefix_hits: list[list[float]] = []
        self._curve: list[list[float]] = []  # num_events, hits, baseline hits, scored
        self._curve_step = _FIRST_CURVE_STEP
        self._open = [0.0, 0.0, 0.0]

    def add(self, event: ScoredEvent) -> None:
        """Takes in one scored event."""
        hit = 0 <= event.rank < K
        baseline_hit = 0 <= event.baseline_rank < K
        figures = [float(hit), 1.0 / math.log2(event.rank + 2) if hit else 0.0, float(baseline_hit)]
        if event.is_repeat:
            self._append(self._recent["repeat"], figures)
            return
        segments = (
            "all",
            "cold_user" if event.is_cold_user else "warm_user",
            "new_item" if event.is_new_item else "old_item",
        )
        for segment in segments:
            self._append(self._recent[segment], figures)
        if len(event.prefix_hits_C):
            self._append(self._prefix_hits, [float(found) for found in event.prefix_hits_C])
        self._open = [self._open[0] + hit, self._open[1] + baseline_hit, self._open[2] + 1]

    def mark(self, num_events: int) -> None:
        """Closes a point of the curve if enough events were learned since the last one."""
        last = self._curve[-1][0] if self._curve else 0
        if num_events - last < self._curve_step or not self._open[2]:
            return
        self._curve.append([float(num_events), *self._open])
        self._open = [0.0, 0.0, 0.0]
        if len(self._curve) > _MAX_CURVE_POINTS:  # halve the resolution
            pairs = zip(self._curve[0::2], self._curve[1::2], strict=False)
            odd = [self._curve[-1]] if len(self._curve) % 2 else []
            self._curve = [
                [b[0], *(x + y for x, y in zip(a[1:], b[1:], strict=True))] for a, b in pairs
            ] + odd
            self._curve_step *= 2

    def segments(self) -> list[SegmentQuality]:
        """The windowed figures of each segment, `all` first."""
        found = []
        for segment, rows in self._recent.items():
            mean = np.mean(rows, axis=0) if rows else np.zeros(_FIGURES)
            found.append(
                SegmentQuality(
                    segment=segment,
                    num_events=len(rows),
                    recall_at_10=float(mean[_HIT]),
                    ndcg_at_10=float(mean[_GAIN]),
                    popularity_recall_at_10=float(mean[_BASELINE]),
                )
            )
        return found

    def figures(self) -> dict[str, float]:
        """The figures of segment `all`, by name, for a release to carry."""
        whole = self.segments()[0]
        return {
            "num_scored": float(whole.num_events),
            "recall@10": whole.recall_at_10,
            "ndcg@10": whole.ndcg_at_10,
            "popularity_recall@10": whole.popularity_recall_at_10,
        }

    def hierarchical_recall(self) -> list[float]:
        """For each level, the share of events whose right prefix was among the beams; level 1 first."""
        return [float(share) for share in np.mean(self._prefix_hits, axis=0)] if self._prefix_hits else []

    def curve(self) -> list[CurvePoint]:
        """At most 200 points, oldest first."""
        return [
            CurvePoint(
                num_events=int(num_events),
                recall_at_10=hits / scored,
                popularity_recall_at_10=baseline / scored,
            )
            for num_events, hits, baseline, scored in self._curve
        ]

    def state(self) -> dict[str, Tensor]:
        """Windows, curve and open point as float64 tensors, for a checkpoint."""
        tensors = {segment: _tensor(rows, _FIGURES) for segment, rows in self._recent.items()}
        return tensors | {
            "prefix_hits": _tensor(self._prefix_hits, self.num_codes),
            "curve": _tensor(self._curve, 4),
            "open": torch.tensor([*self._open, self._curve_step], dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, window: int, num_codes: int, tensors: dict[str, Tensor]) -> "PrequentialQuality":
        """The figures that `state` described (float64 tensors); raises KeyError where one is missing."""
        quality = cls(window, num_codes)
        quality._recent = {segment: tensors[segment].tolist() for segment in SEGMENTS}
        quality._prefix_hits = tensors["prefix_hits"].tolist()
        quality._curve = tensors["curve"].tolist()
        *quality._open, step = tensors["open"].tolist()
        quality._curve_step = int(step)
        return quality

    def _append(self, rows: list[list[float]], row: list[float]) -> None:
        rows.append(row)
        del rows[: -self.window]


class PairedHits:
    """Whether the learner and the live release hit the same events, for the last `window` of them."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._pairs: list[list[float]] = []

    def add(self, *, learner_hit: bool, live_hit: bool) -> None:
        """One event that both predicted."""
        self._pairs.append([float(learner_hit), float(live_hit)])
        del self._pairs[: -self.window]

    def clear(self) -> None:
        """Forgets all pairs: another release went live."""
        self._pairs = []

    def columns(self) -> tuple[Float64Array, Float64Array]:
        """Hits of the learner and of the live release, 0 or 1, each float64 [N]."""
        pairs = np.asarray(self._pairs, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def state(self) -> dict[str, Tensor]:
        """All pairs, float64 [N, 2]."""
        return {"pairs": _tensor(self._pairs, 2)}

    @classmethod
    def from_state(cls, window: int, tensors: dict[str, Tensor]) -> "PairedHits":
        """The pairs that `state` described (float64 [N, 2])."""
        paired = cls(window)
        paired._pairs = tensors["pairs"].tolist()
        return paired


def _tensor(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, width)
