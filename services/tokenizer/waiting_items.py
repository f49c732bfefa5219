"""From announced items to published semantic IDs: what waits, what goes first, what is sent again.

Knows the order of the work and the topics; what a semantic ID is, `serving` knows.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from functools import partial

import structlog

from protos.headrace.v1.items_pb2 import ItemSid
from services.metrics import EVENTS_CONSUMED, ITEM_TO_SID_SECONDS
from services.model_host.model_thread import ModelThread
from services.tokenizer.rejects import Rejects
from services.tokenizer.serving import TokenizerServing
from streaming.clients.follow import read_to_end
from streaming.clients.producer import AsyncProducer
from streaming.errors import BrokerUnavailable
from streaming.messages.records import Record
from streaming.messages.topics import ITEMS, SEMANTIC_IDS

# About a third of a second of text embedding on one core: the next batch must not wait for long.
_BATCH_ITEMS = 32
_RETRY_S = 1.0
# For all of `items`, which may hold millions: reading them again is rare.
_READ_TIMEOUT_S = 600.0

log = structlog.get_logger()


class WaitingItems:
    """Items wait here until a release is live and the known semantic IDs have been read."""

    def __init__(
        self,
        bootstrap: str,
        serving: TokenizerServing,
        thread: ModelThread,
        producer: AsyncProducer,
        rejects: Rejects,
    ) -> None:
        self._bootstrap = bootstrap
        self._serving = serving
        self._thread = thread
        self._producer = producer
        self._rejects = rejects
        self._pending: dict[str, Record] = {}
        self._deferred: dict[str, Record] = {}
        self._lost: set[str] = set()
        self._wake = asyncio.Event()
        self._release_is_live = asyncio.Event()
        self._sids_are_known = asyncio.Event()
        self._items_are_live = False

    async def put_items(self, records: list[Record]) -> None:
        """Takes records of `items`, tombstones too; of two for one item the newer counts."""
        EVENTS_CONSUMED.labels(ITEMS).inc(len(records))
        for record in records:
            item_id = record.key if record.message is None else record.message.item_id
            self._pending.pop(item_id, None)  # the newest go last: an item stands at its newest record
            self._pending[item_id] = record
            self._deferred.pop(item_id, None)
            self._lost.discard(item_id)
        self._wake.set()

    def put_again(self, item_ids: Collection[str]) -> None:
        """Lets items that lost their codes wait once more, by their records on the topic.

        They are tokenized, or rejected with what their producer sent, like new ones.
        """
        self._lost.update(item_ids)
        self._wake.set()

    async def put_sids(self, records: list[Record]) -> None:
        """Takes records of `semantic-ids`."""
        EVENTS_CONSUMED.labels(SEMANTIC_IDS).inc(len(records))
        await self._thread.run(partial(self._serving.put_sids, records))

    def note_release(self) -> None:
        """A release is live."""
        self._release_is_live.set()

    def note_known_sids(self) -> None:
        """Everything that was in `semantic-ids` at the start has been taken."""
        self._sids_are_known.set()

    def note_known_items(self) -> None:
        """Everything that was in `items` at the start has been taken; from now on delays are counted."""
        self._items_are_live = True

    async def run(self) -> None:
        """Tokenizes and publishes until cancelled."""
        await self._release_is_live.wait()
        await self._sids_are_known.wait()
        while True:
            self._wake.clear()
            if self._pending:
                await self._tokenize(self._pending, recheck=False)
            elif self._lost:
                await self._find_lost()
            elif self._deferred:
                await self._tokenize(self._deferred, recheck=True)
            else:
                await self._wake.wait()

    async def publish(self, sids: Sequence[ItemSid]) -> None:
        """Returns when the broker has them; tries until it does, since codes that are given stay given."""
        while sids:
            try:
                await self._producer.send_many(SEMANTIC_IDS, [(sid.item_id, sid) for sid in sids])
                return
            except BrokerUnavailable as error:
                log.warning("semantic_ids_wait_for_the_broker", num_items=len(sids), error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _find_lost(self) -> None:
        """Reads the records of the lost items; without the broker they stay lost until it is back."""
        wanted = frozenset(self._lost)
        try:
            newest = await asyncio.to_thread(self._read_items, wanted)
        except BrokerUnavailable as error:
            log.warning("lost_items_wait_for_the_broker", num_items=len(wanted), error=str(error))
            await asyncio.sleep(_RETRY_S)
            return
        # those that came anew meanwhile are lost no more
        still_lost = self._lost & wanted
        self._lost -= wanted
        found = {item_id: record for item_id, record in newest.items() if item_id in still_lost}
        self._pending |= found
        log.warning("items_lost_their_codes", num_items=len(wanted), num_found=len(found))

    def _read_items(self, wanted: frozenset[str]) -> dict[str, Record]:
        """The newest record of each of these items; none of those that are withdrawn."""
        records = read_to_end(
            self._bootstrap,
            ITEMS,
            timeout_s=_READ_TIMEOUT_S,
            is_wanted=wanted.__contains__,
            with_tombstones=True,
        )
        newest = {record.key: record for record in records}
        return {item_id: record for item_id, record in newest.items() if record.message is not None}

    async def _tokenize(self, waiting: dict[str, Record], *, recheck: bool) -> None:
        records = [waiting.pop(item_id) for item_id in list(waiting)[:_BATCH_ITEMS]]
        started = time.perf_counter()
        done = await self._thread.run(partial(self._serving.tokenize, records, recheck=recheck))
        for record in done.deferred:
            if record.message.item_id not in self._pending:
                self._deferred[record.message.item_id] = record
        await self.publish(done.sids)
        if self._items_are_live and not recheck:
            announced_ms = {
                record.message.item_id: record.timestamp_ms for record in records if record.message
            }
            for sid in done.sids:
                if sid.item_id not in announced_ms:
                    continue
                delay_ms = time.time() * 1e3 - announced_ms[sid.item_id]
                ITEM_TO_SID_SECONDS.observe(max(0.0, delay_ms) / 1e3)
        for record, reason, text in done.rejected:
            self._rejects.put(record, reason, text)
        if done.sids or done.rejected:
            log.info(
                "items_tokenized",
                num_published=len(done.sids),
                num_rejected=len(done.rejected),
                num_waiting=len(self._pending),
                latency_ms=round((time.perf_counter() - started) * 1e3, 1),
            )
