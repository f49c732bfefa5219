"""What the gateway knows of the catalogue: title, categories and availability of every announced item.

Fed from the topic `items`; knows neither semantic IDs nor releases, so it answers also when no model
is live.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from protos.headrace.v1.items_pb2 import Item


@dataclass(frozen=True, slots=True)
class ItemInfo:
    """One announced item; `announced_time_ms` is milliseconds since the Unix epoch."""

    title: str
    categories: frozenset[str]
    available: bool
    announced_time_ms: int


_WITHDRAWN = ItemInfo(title="", categories=frozenset(), available=False, announced_time_ms=0)


class ItemView:
    """Announced items by id, and the available ones from newest to oldest."""

    def __init__(self) -> None:
        self._items: dict[str, ItemInfo] = {}
        self._available: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_available(self) -> int:
        """How many items may be recommended."""
        return len(self._available)

    def get(self, item_id: str) -> ItemInfo | None:
        """The newest record of an item, or None if it was never announced."""
        return self._items.get(item_id)

    def title(self, item_id: str) -> str:
        """The item's title; empty if it has none or was never announced."""
        item = self._items.get(item_id)
        return item.title if item else ""

    def newest(self) -> Iterator[str]:
        """Ids of available items, the last announced first; ties by id, backwards."""
        return (item_id for _, item_id in reversed(self._available))

    def upsert(self, item: Item) -> None:
        """Takes over a record of the topic."""
        self._remove(item.item_id)
        self._items[item.item_id] = ItemInfo(
            title=item.title,
            categories=frozenset(item.categories),
            available=not item.unavailable,
            announced_time_ms=item.announced_time_ms,
        )
        if not item.unavailable:
            insort(self._available, (item.announced_time_ms, item.item_id))

    def withdraw(self, item_id: str) -> None:
        """The item's record was deleted (a tombstone): no longer recommended, whatever a release says."""
        self._remove(item_id)
        self._items[item_id] = _WITHDRAWN

    def _remove(self, item_id: str) -> None:
        old = self._items.pop(item_id, None)
        if old is not None and old.available:
            del self._available[bisect_left(self._available, (old.announced_time_ms, item_id))]
