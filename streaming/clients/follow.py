"""Topics read in batches: what a service follows without end, and what it reads once to the end.

`streaming.clients.tail` finds the records; here they are handed over in groups, so that one turn of a model's
thread takes many.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

from aiokafka import ConsumerRecord

from streaming.clients.tail import tail
from streaming.errors import BrokerUnavailable, MalformedEvent
from streaming.messages.records import Record

MAX_BATCH = 500


async def follow(
    bootstrap: str,
    topic: str,
    handle: Callable[[list[Record]], Awaitable[None]],
    *,
    offsets: Mapping[str, int] | None = None,
    from_now: bool = False,
    is_wanted: Callable[[str], bool] | None = None,
    on_caught_up: Callable[[], None] | None = None,
    on_malformed: Callable[[ConsumerRecord, MalformedEvent], None] | None = None,
    with_tombstones: bool = False,
) -> None:
    """Awaits `handle` for all records of a topic, at most `MAX_BATCH` at once, until cancelled.

    `offsets`, `from_now`, `is_wanted`, `on_malformed`, `with_tombstones` as in `tail`. `on_caught_up` is
    called once, when what was there at the start is handled.
    """
    queue: asyncio.Queue[Record] = asyncio.Queue(2 * MAX_BATCH)
    num_read, num_handled, num_at_start = 0, 0, -1

    def tell_if_caught_up() -> None:
        nonlocal num_at_start
        if on_caught_up is not None and 0 <= num_at_start <= num_handled:
            num_at_start = -1
            on_caught_up()

    def at_start() -> None:
        nonlocal num_at_start
        num_at_start = num_read
        tell_if_caught_up()

    async def read() -> None:
        nonlocal num_read
        records = tail(
            bootstrap,
            [topic],
            offsets=offsets,
            from_now=from_now,
            is_wanted=is_wanted,
            on_caught_up=at_start,
            on_malformed=on_malformed,
            with_tombstones=with_tombstones,
        )
        async with contextlib.aclosing(records):  # type: ignore[type-var]
            async for record in records:
                num_read += 1
                await queue.put(record)

    async def work() -> None:
        nonlocal num_handled
        while True:
            batch = await _take(queue)
            await handle(batch)
            num_handled += len(batch)
            tell_if_caught_up()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(work())


async def _take(queue: asyncio.Queue[Record]) -> list[Record]:
    """What is in the queue, once something is; at most `MAX_BATCH` records."""
    batch = [await queue.get()]
    while len(batch) < MAX_BATCH and not queue.empty():
        batch.append(queue.get_nowait())
    return batch


def read_to_end(
    bootstrap: str,
    topic: str,
    *,
    timeout_s: float = 15.0,
    is_wanted: Callable[[str], bool] | None = None,
    with_tombstones: bool = False,
) -> list[Record]:
    """All records of a topic up to its present end; `is_wanted`, `with_tombstones` as in `tail`.

    Blocking; raises BrokerUnavailable after `timeout_s`.
    """
    records: list[Record] = []

    async def read() -> None:
        caught_up = asyncio.Event()

        async def collect(batch: list[Record]) -> None:
            records.extend(batch)

        reading = asyncio.create_task(
            follow(
                bootstrap,
                topic,
                collect,
                is_wanted=is_wanted,
                on_caught_up=caught_up.set,
                with_tombstones=with_tombstones,
            )
        )
        try:
            async with asyncio.timeout(timeout_s):
                await caught_up.wait()
        except TimeoutError as error:
            raise BrokerUnavailable(f"topic {topic} could not be read from {bootstrap}") from error
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(read())
    return records
