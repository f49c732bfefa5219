"""What an event says of its user and its item: a wish, an aversion, or nothing.

The one rule for all who read events: histories, counters, statistics and the model. Knows neither.
"""

import math
from dataclasses import dataclass
from enum import Enum

from protos.headrace.v1.events_pb2 import Action

# an enumeration of protobuf looks its members up by name at each use
_RATING, _SKIP = Action.ACTION_RATING, Action.ACTION_SKIP
_SHOWN = (Action.ACTION_IMPRESSION, Action.ACTION_UNSPECIFIED)


class Meaning(Enum):
    """A wish is learned, counted and read by the model; an aversion lowers what is like its item."""

    WISH = 1
    NOTHING = 2
    AVERSION = 3


@dataclass(frozen=True, kw_only=True)
class EventMeaning:
    """What an event means. `liked_rating`: a rating of so many stars or more is a wish, one of fewer an
    aversion.

    To be shown an item says nothing of it; to skip it is an aversion; a rating whose stars were left out
    (0) says nothing; everything else that people do to items is a wish.
    """

    liked_rating: float = 3.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.liked_rating):
            raise ValueError("liked_rating must be a finite number")

    def of(self, action: int, value: float) -> Meaning:
        """The meaning of an action (a number of `headrace.v1.Action`) with its value."""
        if action == _RATING:
            if value == 0.0:
                return Meaning.NOTHING
            return Meaning.WISH if value >= self.liked_rating else Meaning.AVERSION
        if action == _SKIP:
            return Meaning.AVERSION
        if action in _SHOWN:
            return Meaning.NOTHING
        return Meaning.WISH
