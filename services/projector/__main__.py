"""The projector's process: `streaming.histories.projector` in a thread, with health, metrics and graceful
stop.

Histories and offsets are written in one transaction, so it may be killed at any moment; the graceful
stop only ends the batch in hand.
"""

import asyncio
import threading

from services.metrics import (
    DLQ_RECORDS,
    EVENT_TO_HISTORY_SECONDS,
    EVENTS_CONSUMED,
    EVENTS_DUPLICATE,
    count_stream_lag,
)
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings
from streaming.clients.dead_letter import DeadLetters
from streaming.histories.projector import GROUP_ID, ProjectionReport, project
from streaming.histories.store import HistoryStore
from streaming.messages.records import split_position
from streaming.messages.topics import INTERACTIONS

NAME = "projector"


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the projector until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    history = await asyncio.to_thread(HistoryStore.open, settings.store.history_path, read_only=False)
    try:
        await server.start([])
        await server.run(_project(settings.broker.bootstrap_servers, history, server))
    finally:
        history.close()


async def _project(bootstrap: str, history: HistoryStore, server: ServiceServer) -> None:
    """Runs the loop in a thread; when cancelled, waits until the batch in hand is written."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    is_ready = threading.Event()

    def report(batch: ProjectionReport) -> None:
        observe(batch)
        if batch.lag is not None and not is_ready.is_set():  # the broker has answered
            is_ready.set()
            loop.call_soon_threadsafe(server.set_ready, True)

    def work() -> None:
        dead_letters = DeadLetters(bootstrap, stage=NAME, on_dead_letter=_count_dead_letter)
        try:
            project(bootstrap, history, dead_letters, stop=stop, on_batch=report)
        finally:
            dead_letters.close()

    running = asyncio.create_task(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    finally:
        stop.set()
        await running


def observe(batch: ProjectionReport) -> None:
    """Puts one turn of the loop into the metrics."""
    EVENTS_CONSUMED.labels(INTERACTIONS).inc(len(batch.event_to_history_s))
    EVENTS_DUPLICATE.inc(batch.num_duplicates)
    for seconds in batch.event_to_history_s:
        EVENT_TO_HISTORY_SECONDS.observe(seconds)
    for position, lag in (batch.lag or {}).items():
        count_stream_lag(*split_position(position), GROUP_ID, lag, batch.hidden[position])


def _count_dead_letter(topic: str, stage: str, reason: str) -> None:
    DLQ_RECORDS.labels(topic, stage, reason).inc()


def main() -> None:
    """`python -m services.projector`."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
