"""The catalogue of the live release, kept up to date from the topic `semantic-ids`: the one way in for items.

Owns which announced items wait for a release of their codebook version, and how a new release gets
what the old one already knew. Knows no broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch
from torch import Tensor

from models.catalogue.index import CatalogueIndex
from protos.headrace.v1.items_pb2 import ItemSid
from services.wire.translate import content_of

log = structlog.get_logger()

# Of one item, records of so many other codebook versions wait: refreshes are made one after the other.
_MAX_VERSIONS = 8


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
        self._waiting: dict[str, dict[str, ItemSid]] = {}  # by item, then codebook version, oldest first

    def prepare(self, index: CatalogueIndex) -> Changes:
        """Gives a loaded catalogue what is known beyond it, before it goes live; says what that changed."""
        changes = Changes()
        if self.index is not None and self.index.codebook.version == index.codebook.version:
            _carry_over(self.index, index, changes)
        for by_version in list(self._waiting.values()):
            if sid := by_version.get(index.codebook.version):
                put(index, sid, changes)
        return changes

    def swap(self, index: CatalogueIndex) -> Changes:
        """Makes a prepared catalogue the live one; gives it what came since it was prepared."""
        changes = self.prepare(index)
        self.index = index
        # What waits for a codebook that is not live yet goes on waiting.
        for item_id, by_version in list(self._waiting.items()):
            by_version.pop(index.codebook.version, None)
            if not by_version:
                del self._waiting[item_id]
        return changes

    def put_many(self, sids: Iterable[ItemSid]) -> Changes:
        """Takes records of `semantic-ids`; those of another codebook version wait for its release.

        Of one item and version the newest record counts; the records of its other versions stay beside it,
        the newest `_MAX_VERSIONS` of them.
        """
        changes = Changes()
        for sid in sids:
            if self.index is not None and sid.sid.codebook_version == self.index.codebook.version:
                put(self.index, sid, changes)
            else:
                self._wait(sid, changes)
        return changes

    def _wait(self, sid: ItemSid, changes: Changes) -> None:
        by_version = self._waiting.setdefault(sid.item_id, {})
        by_version.pop(sid.sid.codebook_version, None)  # the newest stands last
        by_version[sid.sid.codebook_version] = sid
        if len(by_version) > _MAX_VERSIONS:
            oldest = next(iter(by_version))
            del by_version[oldest]
            changes.num_refused += 1
            log.warning("semantic_id_of_too_many_codebooks", item_id=sid.item_id, codebook_version=oldest)


def put(index: CatalogueIndex, sid: ItemSid, changes: Changes) -> None:
    """Inserts or updates one item by a record of this codebook version; notes what that changed.

    One whose codes are no SID or contradict the catalogue is refused: the release is the truth. Whether the
    item is available it says all the same.
    """
    row = index.row(sid.item_id)
    content_E = content_of(sid)
    if row is not None and bool(index.available_N[row]) == sid.unavailable:
        index.set_available(row, not sid.unavailable)
        changes.availability_changed = True
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
        elif not _says_the_same(index, row, sid, content_E):
            index.insert(sid.item_id, sid.sid.codes, content_E, available=not sid.unavailable)
            changes.changed_rows.append(row)
    except ValueError as error:
        changes.num_refused += 1
        log.warning("semantic_id_contradicts_the_release", error=str(error))


def _says_the_same(index: CatalogueIndex, row: int, sid: ItemSid, content_E: Tensor) -> bool:
    return list(sid.sid.codes) == index.codes_NC[row].tolist() and torch.equal(
        index.content_NE[row], content_E
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
