"""How many events a second the trends worker counts, on the embedded broker or on Apache Kafka.

    python tests/benchmarks/bench_trends.py --broker embedded --prefill-mb 100 --output trends.json
    python tests/benchmarks/bench_trends.py --broker container
    python tests/benchmarks/bench_trends.py --broker 127.0.0.1:9092     # topics must be empty

Two measurements, each bounded to a minute: a backlog of events read as fast as it goes, and a steady
rate held for some seconds. Items are evenly used, which is the worst case: many distinct ones a batch.
`--prefill-mb` puts that much into another topic first: the embedded broker writes all it holds anew
every few seconds, so its share of the machine grows with that.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aiokafka import AIOKafkaProducer

from protos.headrace.v1.events_pb2 import ACTION_CLICK, Event
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.producer import AsyncProducer
from streaming.clients.topic_admin import create_topics
from streaming.messages.meaning import EventMeaning
from streaming.messages.topics import INTERACTIONS
from streaming.trends.worker import TrendsBatch, TrendsWorker

LIMIT_S = 60.0
TICK_S = 0.1
NUM_PARTITIONS = 4


@contextmanager
def embedded(folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of an embedded broker."""
    from tests.conftest import find_free_port

    with EmbeddedBroker(folder, f"127.0.0.1:{find_free_port()}") as broker:
        assert broker.pid is not None
        yield broker.bootstrap, broker.pid


@contextmanager
def container() -> Iterator[tuple[str, None]]:
    """Address of Apache Kafka in a container."""
    from tests.conftest import kafka_container

    fixture = kafka_container.__wrapped__()
    try:
        yield next(fixture), None
    finally:
        with suppress(StopIteration):
            next(fixture)


class Events:
    """Clicks by 997 users on evenly used items, one millisecond apart."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items
        self._rng = random.Random(0)
        self.num_made = 0

    def take(self, num_events: int) -> list[tuple[str, Event]]:
        pairs = []
        for _ in range(num_events):
            event = Event(
                event_id=f"e{self.num_made}",
                user_id=f"u{self.num_made % 997}",
                item_id=f"i{self._rng.randrange(self._num_items)}",
                action=ACTION_CLICK,
                event_time_ms=1_700_000_000_000 + self.num_made,
            )
            pairs.append((event.user_id, event))
            self.num_made += 1
        return pairs


class Progress:
    """What the worker has reported."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._changed = asyncio.Event()
        self.num_events = 0
        self.num_items = 0
        self.num_batches = 0

    def on_batch(self, batch: TrendsBatch) -> None:
        self.num_events += batch.num_events
        self.num_items += batch.num_items
        self.num_batches += 1
        self._changed.set()

    async def reach(self, num_events: int) -> float:
        """Seconds until so many events were counted, or until it gave up."""
        begin_s = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                while self.num_events < num_events:
                    self._changed.clear()
                    await self._changed.wait()
        return time.perf_counter() - begin_s


async def prefill(bootstrap: str, megabytes: int) -> None:
    client = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)
    await client.start()
    for _ in range(megabytes * 1_000):
        await client.send("bench-prefill", b"x" * 1_000)
    await client.stop()


async def hold(
    producer: AsyncProducer, events: Events, progress: Progress, rate: int, seconds: float
) -> dict:
    """Sends `rate` events a second and looks how far behind the worker is at each tick."""
    offset = events.num_made
    num_ticks = int(seconds / TICK_S)
    behind = []
    begin_s = time.perf_counter()
    for tick in range(num_ticks):
        await producer.send_many(INTERACTIONS, events.take(int(rate * TICK_S)))
        behind.append(events.num_made - progress.num_events)
        await asyncio.sleep(max(0.0, begin_s + (tick + 1) * TICK_S - time.perf_counter()))
    wall_s = time.perf_counter() - begin_s
    catch_up_s = await progress.reach(events.num_made)
    behind.sort()
    return {
        "wanted_per_s": rate,
        "sent_per_s": round((events.num_made - offset) / wall_s),
        "num_behind_p50": behind[len(behind) // 2],
        "num_behind_max": behind[-1],
        "caught_up_after_s": round(catch_up_s, 2),
    }


async def measure(bootstrap: str, broker_pid: int | None, args: argparse.Namespace) -> dict:
    create_topics(bootstrap, num_partitions=NUM_PARTITIONS, replication_factor=1)
    if args.prefill_mb:
        await prefill(bootstrap, args.prefill_mb)
    events = Events(args.num_items)
    progress = Progress()
    async with AsyncProducer(bootstrap) as producer:
        await producer.send_many(INTERACTIONS, events.take(args.num_events))
        with tempfile.TemporaryDirectory() as folder:
            worker = TrendsWorker(
                bootstrap,
                Path(folder),
                meaning=EventMeaning(),
                on_ready=progress.ready.set,
                on_batch=progress.on_batch,
            )
            before = broker_use(broker_pid)
            begin_s = time.perf_counter()
            work = asyncio.create_task(worker.run())
            try:
                async with asyncio.timeout(LIMIT_S):
                    await progress.ready.wait()
                ready_s = time.perf_counter() - begin_s
                backlog_s = await progress.reach(args.num_events)
                backlog = {
                    "num_events": progress.num_events,
                    "events_per_s": round(progress.num_events / backlog_s),
                    "wall_s": round(backlog_s, 2),
                    "num_batches": progress.num_batches,
                    "num_trends_published": progress.num_items,
                    "finished": progress.num_events >= args.num_events,
                }
                steady = await hold(producer, events, progress, args.rate, args.seconds)
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
    result = {"ready_s": round(ready_s, 2), "backlog": backlog, "steady": steady}
    if before is not None and (after := broker_use(broker_pid)) is not None:
        result["broker_use"] = {
            "cpu_s": round(after[0] - before[0], 1),
            "written_mb": round((after[1] - before[1]) / 1e6),
        }
    return result


def broker_use(pid: int | None) -> tuple[float, int] | None:
    """CPU seconds and bytes written to disk of the broker so far, where this machine tells."""
    if pid is None or sys.platform != "linux":
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    written = next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
    return ticks / os.sysconf("SC_CLK_TCK"), written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="embedded", help="embedded, container or host:port")
    parser.add_argument("--num-events", type=int, default=50_000)
    parser.add_argument("--num-items", type=int, default=1_000)
    parser.add_argument("--rate", type=int, default=2_000, help="events a second to hold")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long to hold it")
    parser.add_argument("--prefill-mb", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the broker is not left behind
    load = os.getloadavg()[0]
    logging.basicConfig(level=logging.WARNING)
    with ExitStack() as stack:
        if args.broker == "embedded":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bootstrap, pid = stack.enter_context(embedded(folder))
        elif args.broker == "container":
            bootstrap, pid = stack.enter_context(container())
        else:
            bootstrap, pid = args.broker, None
        result = asyncio.run(measure(bootstrap, pid, args))
    report = {
        "benchmark": "trends",
        "broker": args.broker,
        "prefill_mb": args.prefill_mb,
        "num_items": args.num_items,
        "hardware": {
            "machine": platform.machine(),
            "num_cores": os.cpu_count(),
            "load_before": round(load, 1),
        },
        **result,
    }
    text = json.dumps(report, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
