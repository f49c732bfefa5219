"""The per-user histories, and the stream position they stand for, in one LMDB environment.

One writer (the projector), readers in any number of processes. Events and offsets change in one
transaction, so a history holds each event exactly once whatever happens to the writer. A user's events
stand by event time, those of equal time in stream order, however late one came. What a user did, what they
skipped and what they were shown have places of their own: no number of impressions displaces a purchase.
Knows nothing of brokers; users are kept under a hash of their id.

Layout (keys are sorted bytes):
    users    user hash                                -> num_events, next number, places taken by kind
    events   user hash + kind + time + number (BE)    -> event-id hash + protobuf HistoryEvent
    seen     user hash + event-id hash                -> empty
    offsets  "topic/partition"                        -> next offset (uint64)
"""

import hashlib
import logging
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import lmdb

from protos.headrace.v1.events_pb2 import Action, Event, HistoryEvent
from streaming.messages.records import Record

logger = logging.getLogger(__name__)

DEFAULT_MAX_EVENTS = 1_000

_HASH_BYTES = 16
_NUMBER = struct.Struct(">Q")
_USER = struct.Struct(">5Q")
_PLACE = struct.Struct(">BQQ")
_DID, _SKIPPED, _SHOWN = range(3)
_KIND_OF = {int(Action.ACTION_SKIP): _SKIPPED, int(Action.ACTION_IMPRESSION): _SHOWN}
_INITIAL_MAP_BYTES = 1 << 28
_MAX_READERS = 512
# A store of an earlier layout is not read: the events are projected anew from the topic.
_LAYOUT = b"2"
_DATABASES = tuple(name + _LAYOUT for name in (b"users", b"events", b"seen", b"offsets"))

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

        The newest `max_events` events that a user did, skipped or was shown are kept, so many of each kind;
        an event id is recognised again while its event is among them. `map_bytes` is where the file's limit
        begins; it doubles when full.
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
        try:
            return cls(environment, read_only=read_only, max_events=max_events)
        except lmdb.NotFoundError:
            # another process has made the file, and not yet all that belongs in it
            environment.close()
            cls.open(path, read_only=False, map_bytes=map_bytes).close()
            return cls.open(path, read_only, max_events=max_events, map_bytes=map_bytes)

    def get(self, user_id: str, limit: int, *, with_shown: bool = False) -> list[HistoryEvent]:
        """The newest events of a user by event time, newest last; empty for an unknown user.

        The newest `limit` that they did and the newest `limit` that they skipped, so that a row of skips
        hides no purchase; or, `with_shown`, the newest `limit` of all, what they were shown among them.
        """
        return [
            kept.event
            for kept in self._read(lambda txn: self._newest(txn, _hash(user_id), limit, with_shown))
        ]

    def get_with(
        self, user_id: str, limit: int, written: Sequence[Written], *, with_shown: bool = False
    ) -> tuple[list[HistoryEvent], list[Written]]:
        """As `get`, with those of the user's `written` events that are not applied yet; and these.

        They are placed as they will be in the store: by their times, each id once.
        """
        user = _hash(user_id)

        def read(txn: lmdb.Transaction) -> tuple[list[HistoryEvent], list[Written]]:
            applied = {one.position: self._read_offset(txn, one.position) for one in written}
            waiting: dict[str, Written] = {}
            for one in sorted(written, key=lambda one: one.offset):
                seen = user + _hash(one.event.event_id)
                if one.offset >= applied[one.position] and txn.get(seen, db=self._seen) is None:
                    waiting.setdefault(one.event.event_id, one)
            following = self._read_user(txn, user).following
            news = [_Kept.of(one.event, following + n) for n, one in enumerate(waiting.values())]
            kept = sorted([*self._newest(txn, user, limit, with_shown), *news])
            return [one.event for one in _limited(kept, limit, with_shown)], list(waiting.values())

        return self._read(read)

    def count(self, user_id: str) -> int:
        """How many events the user ever had, those no longer kept among them."""
        return self._read(lambda txn: self._read_user(txn, _hash(user_id)).num_events)

    @property
    def version(self) -> int:
        """The number of the last transaction, of whatever process."""
        return int(self._environment.info()["last_txnid"])

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

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Moves stored offsets back: the records that were there are gone from the topic, and others have
        their places.

        The events that are read again are known by their ids while they are kept.
        """
        if not offsets:
            return
        with self._lock, self._environment.begin(write=True) as txn:
            for position, offset in offsets.items():
                txn.put(position.encode(), _NUMBER.pack(offset), db=self._offsets)

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
        row = self._read_user(txn, user)
        kept = _Kept.of(event, row.following)
        txn.put(user + kept.place, event_hash + kept.event.SerializeToString(), db=self._events)
        taken = list(row.taken)
        taken[kept.kind] += 1
        if taken[kept.kind] > self._max_events:
            self._drop_oldest(txn, user, kept.kind)
            taken[kept.kind] -= 1
        txn.put(user, _USER.pack(row.num_events + 1, row.following + 1, *taken), db=self._users)
        return True

    def _drop_oldest(self, txn: lmdb.Transaction, user: bytes, kind: int) -> None:
        with txn.cursor(self._events) as cursor:
            found = cursor.set_range(user + bytes([kind]))
            assert found, "a kind without a free place has events"
            txn.delete(user + bytes(cursor.value()[:_HASH_BYTES]), db=self._seen)
            cursor.delete()

    def _newest(self, txn: lmdb.Transaction, user: bytes, limit: int, with_shown: bool) -> "list[_Kept]":
        kinds = (_DID, _SKIPPED, _SHOWN) if with_shown else (_DID, _SKIPPED)
        newest = [kept for kind in kinds for kept in islice(self._backwards(txn, user, kind), max(limit, 0))]
        return _limited(sorted(newest), limit, with_shown)

    def _backwards(self, txn: lmdb.Transaction, user: bytes, kind: int) -> "Iterator[_Kept]":
        """The events of one kind, the newest first."""
        with txn.cursor(self._events) as cursor:
            prefix = user + bytes([kind])
            beyond = user + bytes([kind + 1])
            at = cursor.prev() if cursor.set_range(beyond) else cursor.last()
            while at and bytes(cursor.key()[: len(prefix)]) == prefix:
                _, time_ms, number = _PLACE.unpack(cursor.key()[_HASH_BYTES:])
                event = HistoryEvent.FromString(bytes(cursor.value()[_HASH_BYTES:]))
                yield _Kept(time_ms, number, kind, event)
                at = cursor.prev()

    def _read_offset(self, txn: lmdb.Transaction, position: str) -> int:
        value = txn.get(position.encode(), db=self._offsets)
        return _NUMBER.unpack(value)[0] if value else 0

    def _read_user(self, txn: lmdb.Transaction, user: bytes) -> "_UserRow":
        value = txn.get(user, db=self._users)
        num_events, following, *taken = _USER.unpack(value) if value else (0,) * 5
        return _UserRow(num_events, following, tuple(taken))

    def _read(self, read: Callable[[Any], T]) -> T:
        while True:
            with self._lock:
                try:
                    with self._environment.begin() as txn:
                        return read(txn)
                except lmdb.MapResizedError:
                    # the writer, another process, let the file grow past what is mapped here
                    self._environment.set_mapsize(0)


class _UserRow(NamedTuple):
    """Events ever, the number of the next one, and how many of each kind are kept."""

    num_events: int
    following: int
    taken: tuple[int, ...]


class _Kept(NamedTuple):
    """An event at its place; in order of time, then of arrival."""

    time_ms: int
    number: int
    kind: int
    event: HistoryEvent

    @classmethod
    def of(cls, event: Event, number: int) -> "_Kept":
        """The `number`-th event of its user."""
        kept = HistoryEvent(
            item_id=event.item_id, action=event.action, event_time_ms=event.event_time_ms, value=event.value
        )
        return cls(event.event_time_ms, number, _KIND_OF.get(event.action, _DID), kept)

    @property
    def place(self) -> bytes:
        """Its key, behind that of the user."""
        return _PLACE.pack(self.kind, self.time_ms, self.number)


def _limited(kept: list[_Kept], limit: int, with_shown: bool) -> list[_Kept]:
    """The newest `limit` of all, or, without what was shown, the newest `limit` of each kind; in order."""
    if with_shown:
        return kept[max(0, len(kept) - max(limit, 0)) :]
    left = {_DID: limit, _SKIPPED: limit}
    newest = []
    for one in reversed(kept):
        if left.get(one.kind, 0) > 0:
            left[one.kind] -= 1
            newest.append(one)
    return newest[::-1]


def _hash(value: str) -> bytes:
    return hashlib.blake2b(value.encode(), digest_size=_HASH_BYTES).digest()
