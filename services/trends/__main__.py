"""The trends process: the counting application, with health and metrics around it."""

import asyncio
import logging

from services.metrics import EVENTS_CONSUMED
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import INTERACTIONS
from streaming.trends.worker import TrendsBatch, TrendsWorker

_NOISY = ("faust", "mode")


def _report(batch: TrendsBatch) -> None:
    EVENTS_CONSUMED.labels(topic=INTERACTIONS).inc(batch.num_events)


async def serve(settings: Settings) -> None:
    """Builds, wires and runs the service until it is told to stop."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    server = ServiceServer("trends", settings)
    await server.start([])
    broker = settings.broker
    await asyncio.to_thread(
        create_topics,
        broker.bootstrap_servers,
        num_partitions=broker.num_partitions,
        replication_factor=broker.replication_factor,
    )
    worker = TrendsWorker(
        broker.bootstrap_servers,
        settings.store.root / "trends",
        meaning=settings.meaning,
        on_ready=lambda: server.set_ready(True),
        on_batch=_report,
    )
    await server.run(worker.run())


def main() -> None:
    """`python -m services.trends`."""
    run_service("trends", serve)


if __name__ == "__main__":
    main()
