"""A record as it came off a topic, and how positions in topics are named.

Positions are `{"topic/partition": next offset}` everywhere: in checkpoints, in the history store and
in releases.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protos.headrace.v1.release_pb2 import PartitionOffset

Headers = Sequence[tuple[str, bytes | None]]

ORIGIN = "headrace-origin"
"""The header of a record that was sent again: where it stood first, as `Origin` names it."""

# Anybody may write one: numbers are bounded, since Python refuses to read those of thousands of digits.
_ORIGIN = re.compile(rb"([0-9]{1,9})/([0-9]{1,18})/([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a source record stood first, and how often it was sent again since."""

    partition: int
    offset: int
    num_redriven: int = 0

    def header(self) -> tuple[str, bytes]:
        """For the record when it is sent again."""
        return ORIGIN, f"{self.partition}/{self.offset}/{self.num_redriven}".encode()

    @classmethod
    def of(cls, partition: int, offset: int, headers: "Headers | None") -> "Origin":
        """That of a record at this place: its own, unless a header says that it was sent again."""
        for name, content in headers or ():
            if name == ORIGIN and (found := _ORIGIN.fullmatch(content or b"")):
                first, at, times = map(int, found.groups())
                return cls(partition=first, offset=at, num_redriven=times)
        return cls(partition=partition, offset=offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One valid record. `message` is of the topic's class in `streaming.messages.topics.MESSAGE_OF`.

    None is a tombstone, which says that what has this `key` is gone. `key` is empty where the producer gave
    none or one that is not UTF-8; `timestamp_ms` is the time at which the producer sent it (0 if it did not
    say), not the event's own time. `origin` is set for a record that was sent again.
    """

    topic: str
    partition: int
    offset: int
    key: str
    timestamp_ms: int
    message: Any
    origin: Origin | None = None

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


def offset_messages(offsets: Mapping[str, int]) -> list[PartitionOffset]:
    """{"topic/partition": next offset} as messages, sorted."""
    return [
        PartitionOffset(topic=topic, partition=partition, offset=offset)
        for (topic, partition), offset in sorted((split_position(p), offset) for p, offset in offsets.items())
    ]


def text_key(key: bytes | None) -> str:
    """The text of a record's key; empty for none and for one that is not UTF-8."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""
