"""A record as it came off a topic, and how positions in topics are named.

Positions are `{"topic/partition": next offset}` everywhere: in checkpoints, in the history store and
in releases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One valid record. `message` is of the topic's class in `streaming.topics.MESSAGE_OF`.

    `key` is empty where the producer gave none or one that is not UTF-8; `timestamp_ms` is the time at
    which the producer sent it (0 if it did not say), not the event's own time.
    """

    topic: str
    partition: int
    offset: int
    key: str
    timestamp_ms: int
    message: Any

    @property
    def position(self) -> str:
        """The name of its partition in a mapping of offsets."""
        return position_of(self.topic, self.partition)


def position_of(topic: str, partition: int) -> str:
    """The name of a partition in a mapping of offsets: "topic/partition"."""
    return f"{topic}/{partition}"


def split_position(position: str) -> tuple[str, int]:
    """The topic and partition of a name made by `position_of`."""
    topic, _, partition = position.rpartition("/")
    return topic, int(partition)


def text_key(key: bytes | None) -> str:
    """The text of a record's key; empty for none and for one that is not UTF-8."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""


def record_now_ms(timestamp_ms: int, clock_ms: int) -> int:
    """The time against which an event's own time is judged: when it was sent, but not after now.

    The sending time makes the judgement the same whenever the record is read again.
    """
    return min(timestamp_ms, clock_ms) if timestamp_ms > 0 else clock_ms
