"""The per-user histories, and the stream position they stand for, in one LMDB environment.

One writer (the projector), readers in any number of processes. Events and offsets change in one
transaction, so a history holds each event exactly once whatever happens to the writer. A user's
events stand in stream order, which is the order in which the learner sees them too. Knows nothing of
brokers; users are kept under a hash of their id.

Layout (keys are sorted bytes):
    users    user hash                          -> num_events, first, next (three uint64)
    events   user hash + number (uint64, BE)    -> event-id hash + protobuf HistoryEvent
    seen     user hash + event-id hash          -> empty
    offsets  "topic/partition"                  -> next offset (uint64)
"""

import hashlib
import logging
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import lmdb

from protos.headrace.v1.events_pb2 import Event, HistoryEvent
from streaming.records import Record

logger = logging.getLogger(__name__)

DEFAULT_MAX_EVENTS = 1_000

_HASH_BYTES = 16
_NUMBER = struct.Struct(">Q")
_USER = struct.Struct(">QQQ")
_INITIAL_MAP_BYTES = 1 << 28
_MAX_READERS = 512
_DATABASES = (b"users", b"events", b"seen", b"offsets")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ApplyReport:
    """What one `apply` did: events appended, events whose id was in the window, records already done."""

    num_applied: int = 0
    num_duplicates: int = 0
    num_replayed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """An event that the broker has, and where: "topic/partition" and offset."""

    event: Event
    position: str
    offset: int


class HistoryStore:
    """`with HistoryStore.open(path, read_only=True) as store: store.get(user_id, 50)`.

    A process opens a path once. Safe for many threads of it.
    """

    def __init__(self, environment: lmdb.Environment, *, read_only: bool, max_events: int) -> None:
        self._environment = environment
        self._max_events = max_events
        # a change of the map size must not meet an open transaction of this process
        self._lock = threading.RLock()
        self._users, self._events, self._seen, self._offsets = (
            environment.open_db(name, create=not read_only) for name in _DATABASES
        )

    @classmethod
    def open(
        cls,
        path: Path,
        read_only: bool,
        *,
        max_events: int = DEFAULT_MAX_EVENTS,
        map_bytes: int = _INITIAL_MAP_BYTES,
    ) -> "HistoryStore":
        """Opens the store in folder `path`, making an empty one if there is none.

        The newest `max_events` events of each user are kept; an event id is recognised again while its
        event is among them. `map_bytes` is where the file's limit begins; it doubles when full.
        """
        if read_only and not (path / "data.mdb").exists():
            cls.open(path, read_only=False, map_bytes=map_bytes).close()
        path.mkdir(parents=True, exist_ok=True)
        environment = lmdb.open(
            str(path),
            map_size=map_bytes,
            max_dbs=len(_DATABASES),
            max_readers=_MAX_READERS,
            readonly=read_only,
            readahead=False,
        )
        if not read_only:
            # slots of readers that were killed would keep old pages alive for ever
            environment.reader_check()
        return cls(environment, read_only=read_only, max_events=max_events)

    def get(self, user_id: str, limit: int) -> list[HistoryEvent]:
        """The newest `limit` events of a user in stream order, newest last; empty for an unknown user."""
        return self._read(lambda txn: self._newest(txn, _hash(user_id), limit))

    def get_with(
        self, user_id: str, limit: int, written: Sequence[Written]
    ) -> tuple[list[HistoryEvent], list[Written]]:
        """As `get`, and behind it those of the user's `written` events that are to be applied yet; and these.

        They stand as they will stand in the store: in the order of their offsets, each id once.
        """
        user = _hash(user_id)

        def read(txn: lmdb.Transaction) -> tuple[list[HistoryEvent], list[Written]]:
            applied = {one.position: self._read_offset(txn, one.position) for one in written}
            waiting: dict[str, Written] = {}
            for one in sorted(written, key=lambda one: one.offset):
                seen = user + _hash(one.event.event_id)
                if one.offset >= applied[one.position] and txn.get(seen, db=self._seen) is None:
                    waiting.setdefault(one.event.event_id, one)
            events = self._newest(txn, user, limit)
            events += [_kept(one.event) for one in waiting.values()]
            return events[max(0, len(events) - max(limit, 0)) :], list(waiting.values())

        return self._read(read)

    def count(self, user_id: str) -> int:
        """How many events the user ever had, those no longer kept among them."""
        return self._read(lambda txn: self._read_user(txn, _hash(user_id))[0])

    def num_users(self) -> int:
        """How many users have a history."""
        return self._read(lambda txn: int(txn.stat(self._users)["entries"]))

    def offsets(self) -> dict[str, int]:
        """The next offset to apply of each partition, by "topic/partition"."""

        def read(txn: lmdb.Transaction) -> dict[str, int]:
            with txn.cursor(self._offsets) as cursor:
                return {bytes(key).decode(): _NUMBER.unpack(value)[0] for key, value in cursor}

        return self._read(read)

    def apply(self, records: Sequence[Record], offsets: Mapping[str, int]) -> ApplyReport:
        """Appends the events of `records` and moves to `offsets`, all in one durable transaction.

        A record before the stored offset of its partition was applied already, perhaps by another
        writer, and is skipped; stored offsets never move back. An event whose id is among the user's
        kept events is a duplicate and is skipped.
        """
        while True:
            with self._lock:
                try:
                    with self._environment.begin(write=True) as txn:
                        return self._apply(txn, records, offsets)
                except lmdb.MapFullError:
                    size = self._environment.info()["map_size"] * 2
                    logger.info("history_store_grows", extra={"map_bytes": size})
                    self._environment.set_mapsize(size)
                except lmdb.MapResizedError:
                    self._environment.set_mapsize(0)

    def close(self) -> None:
        """Closes the environment; everything applied is on disk already."""
        with self._lock:
            self._environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _apply(
        self, txn: lmdb.Transaction, records: Sequence[Record], offsets: Mapping[str, int]
    ) -> ApplyReport:
        stored: dict[str, int] = {}
        for position in {record.position for record in records} | set(offsets):
            stored[position] = self._read_offset(txn, position)
        applied = duplicates = replayed = 0
        for record in records:
            if record.offset < stored[record.position]:
                replayed += 1
            elif self._append(txn, record.message):
                applied += 1
            else:
                duplicates += 1
        for position, offset in offsets.items():
            if offset > stored[position]:
                txn.put(position.encode(), _NUMBER.pack(offset), db=self._offsets)
        return ApplyReport(num_applied=applied, num_duplicates=duplicates, num_replayed=replayed)

    def _append(self, txn: lmdb.Transaction, event: Event) -> bool:
        user = _hash(event.user_id)
        event_hash = _hash(event.event_id)
        if not txn.put(user + event_hash, b"", db=self._seen, overwrite=False):
            return False
        num_events, first, following = self._read_user(txn, user)
        kept = _kept(event).SerializeToString()
        txn.put(user + _NUMBER.pack(following), event_hash + kept, db=self._events)
        following += 1
        while following - first > self._max_events:
            oldest = txn.pop(user + _NUMBER.pack(first), db=self._events)
            assert oldest is not None, "the kept events of a user are numbered without a gap"
            txn.delete(user + bytes(oldest[:_HASH_BYTES]), db=self._seen)
            first += 1
        txn.put(user, _USER.pack(num_events + 1, first, following), db=self._users)
        return True

    def _newest(self, txn: lmdb.Transaction, user: bytes, limit: int) -> list[HistoryEvent]:
        _, first, following = self._read_user(txn, user)
        begin = max(first, following - max(limit, 0))
        with txn.cursor(self._events) as cursor:
            if begin == following or not cursor.set_key(user + _NUMBER.pack(begin)):
                return []
            values = cursor.iternext(keys=False, values=True)
            return [
                HistoryEvent.FromString(bytes(value[_HASH_BYTES:]))
                for value in islice(values, following - begin)
            ]

    def _read_offset(self, txn: lmdb.Transaction, position: str) -> int:
        value = txn.get(position.encode(), db=self._offsets)
        return _NUMBER.unpack(value)[0] if value else 0

    def _read_user(self, txn: lmdb.Transaction, user: bytes) -> tuple[int, int, int]:
        value = txn.get(user, db=self._users)
        if value is None:
            return 0, 0, 0
        num_events, first, following = _USER.unpack(value)
        return num_events, first, following

    def _read(self, read: Callable[[Any], T]) -> T:
        while True:
            with self._lock:
                try:
                    with self._environment.begin() as txn:
                        return read(txn)
                except lmdb.MapResizedError:
                    # the writer, another process, let the file grow past what is mapped here
                    self._environment.set_mapsize(0)


def _kept(event: Event) -> HistoryEvent:
    return HistoryEvent(
        item_id=event.item_id, action=event.action, event_time_ms=event.event_time_ms, value=event.value
    )


def _hash(value: str) -> bytes:
    return hashlib.blake2b(value.encode(), digest_size=_HASH_BYTES).digest()
