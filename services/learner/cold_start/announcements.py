"""The items of a data folder on the topic `items`: those that no client has put there yet.

An item that was announced, or withdrawn by a tombstone, stays as it is there: the topic is what people said
last, a folder what somebody once exported.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.progress import Progress, quietly
from streaming.clients.follow import read_to_end
from streaming.messages.topics import ITEMS

if TYPE_CHECKING:
    from protos.headrace.v1.items_pb2 import Item
    from streaming.clients.producer import Producer

_CHUNK_ITEMS = 500
_READ_TIMEOUT_S = 120.0


def not_announced(bootstrap: str, items: "Sequence[Item]") -> "list[Item]":
    """Those of `items` that the topic does not mention, in order. Raises BrokerUnavailable."""
    records = read_to_end(bootstrap, ITEMS, timeout_s=_READ_TIMEOUT_S, with_tombstones=True)
    known = {record.key if record.message is None else record.message.item_id for record in records}
    return [item for item in items if item.item_id not in known]


def announce_items(producer: "Producer", items: "Sequence[Item]", progress: Progress = quietly) -> None:
    """Returns when the broker has all of `items`. Raises BrokerUnavailable, MalformedEvent."""
    for first in range(0, len(items), _CHUNK_ITEMS):
        part = items[first : first + _CHUNK_ITEMS]
        for item in part:
            producer.send(ITEMS, item.item_id, item)
        producer.flush()
        progress("items announced", first + len(part), len(items))
