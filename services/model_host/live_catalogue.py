"""The catalogue of the live release, kept up to date from the topic `semantic-ids`: the one way in for items.

Owns which announced items wait for a release of their codebook version, and how a new release gets
what the old one already knew. Knows no broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch

from models.catalogue.index import CatalogueIndex
from protos.headrace.v1.items_pb2 import ItemSid
from services.wire.translate import content_of

log = structlog.get_logger()


@dataclass
class Changes:
    """What some records did to the live catalogue; the content of `changed_rows` is new."""

    inserted: list[ItemSid] = field(default_factory=list)
    changed_rows: list[int] = field(default_factory=list)
    availability_changed: bool = False
    num_refused: int = 0


class LiveCatalogue:
    """`prepare` may run beside one thread that does everything else: `swap` repairs what it missed."""

    def __init__(self) -> None:
        self.index: CatalogueIndex | None = None
        self._waiting: dict[tuple[str, str], ItemSid] = {}  # by item and codebook version

    def prepare(self, index: CatalogueIndex) -> Changes:
        """Gives a loaded catalogue what is known beyond it, before it goes live; says what that changed."""
        changes = Changes()
        if self.index is not None and self.index.codebook.version == index.codebook.version:
            _carry_over(self.index, index, changes)
        for sid in list(self._waiting.values()):
            put(index, sid, changes)
        return changes

    def swap(self, index: CatalogueIndex) -> Changes:
        """Makes a prepared catalogue the live one; gives it what came since it was prepared."""
        changes = self.prepare(index)
        self.index = index
        # What waits for a codebook that is not live yet goes on waiting.
        self._waiting = {key: sid for key, sid in self._waiting.items() if not _fits(index, sid)}
        return changes

    def put_many(self, sids: Iterable[ItemSid]) -> Changes:
        """Takes records of `semantic-ids`; those of another codebook version wait for its release.

        Of one item and version the newest record counts; the records of its other versions stay beside it.
        """
        changes = Changes()
        for sid in sids:
            if self.index is None or not _fits(self.index, sid):
                self._waiting[sid.item_id, sid.sid.codebook_version] = sid
            else:
                put(self.index, sid, changes)
        return changes


def put(index: CatalogueIndex, sid: ItemSid, changes: Changes) -> None:
    """Inserts or updates one item and notes what that changed.

    A record of another codebook version changes nothing, nor does one whose codes contradict the
    catalogue: the release is the truth.
    """
    if not _fits(index, sid):
        return
    row = index.row(sid.item_id)
    content_E = content_of(sid)
    try:
        if row is None:
            index.insert(
                sid.item_id,
                sid.sid.codes,
                content_E,
                available=not sid.unavailable,
                announced_ms=sid.announced_time_ms,
            )
            changes.inserted.append(sid)
        elif not torch.equal(index.content_NE[row], content_E):
            index.insert(sid.item_id, sid.sid.codes, content_E, available=not sid.unavailable)
            changes.changed_rows.append(row)
        elif bool(index.available_N[row]) == sid.unavailable:
            index.set_available(row, not sid.unavailable)
            changes.availability_changed = True
    except ValueError as error:
        changes.num_refused += 1
        log.warning("semantic_id_contradicts_the_release", error=str(error))


def _fits(index: CatalogueIndex, sid: ItemSid) -> bool:
    codebook = index.codebook
    return (
        sid.sid.codebook_version == codebook.version
        and len(sid.sid.codes) == codebook.num_levels + 1
        and all(0 <= code < codebook.codebook_size for code in sid.sid.codes)
        and len(sid.content) == codebook.content_dim
    )


def _carry_over(old: CatalogueIndex, new: CatalogueIndex, changes: Changes) -> None:
    """Inserts into `new` the items that only `old` has; `old` followed the topic, so it knows better."""
    num_items = len(old)
    item_ids, codes_NC, content_NE = old.item_ids[:num_items], old.codes_NC, old.content_NE
    there_N = new.rows(item_ids)
    differs_N = there_N < 0
    known = np.nonzero(~differs_N)[0]
    stale = (content_NE[known] != new.content_NE[there_N[known]]).any(dim=1).numpy()
    changes.changed_rows += there_N[known][stale].tolist()
    differs_N[known] = stale | (old.available_N[known] != new.available_N[there_N[known]])
    for row in np.nonzero(differs_N)[0].tolist():
        try:
            new.insert(
                item_ids[row],
                codes_NC[row].tolist(),
                content_NE[row],
                available=bool(old.available_N[row]),
                announced_ms=int(old.announced_ms_N[row]),
            )
        except ValueError as error:
            changes.num_refused += 1
            log.warning("live_item_contradicts_the_new_release", error=str(error))
