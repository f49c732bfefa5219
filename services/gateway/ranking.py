"""A ranking as the gateway hands it on: what the model proposed, before any policy."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class RankedItem(NamedTuple):
    """One item of a ranking; the mask is that of `services.wire.source_masks`."""

    item_id: str
    score: float
    source_mask: int


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What one release proposes, best first; `degraded` when the ranker did not order it."""

    items: Iterable[RankedItem]
    release_id: str
    degraded: bool
