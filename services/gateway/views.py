"""What the gateway keeps in memory from the compacted topics: items, trends and releases."""

import asyncio
from collections.abc import Callable
from typing import Any

from services.gateway.item_view import ItemView
from services.releases.fold import Releases
from streaming.clients.tail import tail
from streaming.messages.topics import ITEMS, RELEASES, TRENDS
from streaming.trends.counting import TrendsView


class Views:
    """Follows the topics; `caught_up` is set when what was there at the start has been read."""

    def __init__(self) -> None:
        self.items = ItemView()
        self.trends = TrendsView()
        self.releases = Releases()
        self.caught_up = asyncio.Event()

    async def follow(self, bootstrap: str) -> None:
        """Reads until cancelled."""
        take: dict[str, Callable[[Any], None]] = {
            ITEMS: self.items.upsert,
            TRENDS: self.trends.apply,
            RELEASES: self.releases.put,
        }
        gone = {ITEMS: self.items.withdraw, TRENDS: self.trends.remove}
        records = tail(bootstrap, list(take), on_caught_up=self.caught_up.set, with_tombstones=True)
        async for record in records:
            if record.message is not None:
                take[record.topic](record.message)
            elif record.topic in gone:
                gone[record.topic](record.key)
