"""What a reader keeps between its connections: its place in every partition, and how long it waits.

Both readers use it, the blocking one (`streaming.clients.consumer`) and the asynchronous one
(`streaming.clients.tail`). Knows no client: their partitions are anything with a `topic` and a `partition`.
"""

import logging
import random
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from streaming.messages.records import position_of

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0


class Partition(Protocol):
    """A partition as either client names it."""

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """Its number."""


P = TypeVar("P", bound=Partition)


class Backoff:
    """Pauses between tries, in seconds: each up to twice as long as the last, none beyond five."""

    def __init__(self) -> None:
        self._longest_s = _FIRST_BACKOFF_S

    def next_s(self) -> float:
        """The pause before the next try; random, so that readers which failed together part."""
        pause_s = self._longest_s * random.uniform(0.5, 1.0)
        self._longest_s = min(self._longest_s * 2, _MAX_BACKOFF_S)
        return pause_s

    def reset(self) -> None:
        """The last try succeeded."""
        self._longest_s = _FIRST_BACKOFF_S


def name_of(partition: Partition) -> str:
    """Its name in a mapping of offsets."""
    return position_of(partition.topic, partition.partition)


def settle(
    offsets: dict[str, int],
    first: Mapping[P, int],
    end: Mapping[P, int],
    *,
    stage: str,
    is_hidden: Callable[[P, int], bool] = lambda partition, offset: False,
) -> dict[str, int]:
    """Moves each place that its partition does not have to the first that it has, and says so in the log.

    `offsets` ("topic/partition" -> next offset) is changed: partitions it does not name begin at `first`.
    An offset before `first` is gone; one after `end` was lost by the broker, or belongs to a topic that
    was deleted and made anew, unless it `is_hidden` by an open transaction. Returns the places that moved
    back, and where to.
    """
    rewound = {}
    for partition, begin in first.items():
        name = name_of(partition)
        wanted = offsets.setdefault(name, begin)
        if begin <= wanted <= end[partition] or is_hidden(partition, wanted):
            continue
        logger.error(
            "offset_out_of_range",
            extra={
                "stage": stage,
                "position": name,
                "wanted": wanted,
                "taken": begin,
                "end": end[partition],
            },
        )
        offsets[name] = begin
        if wanted > begin:
            rewound[name] = begin
    return rewound
