"""What the handlers of all kinds of requests share: this node's address, its topics, groups and flusher."""

from dataclasses import dataclass
from pathlib import Path

from streaming.broker.flusher import Flusher
from streaming.broker.groups import Group
from streaming.broker.offsets import GroupOffsets
from streaming.broker.topics import Topics

NODE_ID = 1


@dataclass
class Node:
    """The one node of the cluster, as clients are told to reach it."""

    host: str
    port: int
    topics: Topics
    offsets: GroupOffsets
    flusher: Flusher
    groups: dict[str, Group]

    @classmethod
    def open(cls, folder: Path, host: str, port: int) -> "Node":
        """A node with what is in `folder`; raises OSError."""
        return cls(host, port, Topics(folder), GroupOffsets(folder), Flusher(), {})

    def close(self) -> None:
        """Closes its files."""
        self.topics.close()
        self.offsets.close()
