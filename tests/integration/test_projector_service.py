"""The projector as a process: exactly once through kill -9, health, metrics, and a graceful stop."""

import asyncio
import os
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.headrace.v1.events_pb2 import Action, Event
from services.settings import BrokerSettings, EndpointSettings, Settings, StoreSettings, to_environment
from streaming.clients.producer import AsyncProducer
from streaming.clients.topic_admin import create_topics
from streaming.histories.store import HistoryStore
from streaming.messages.topics import INTERACTIONS

pytestmark = pytest.mark.integration

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def settings(embedded_broker: str, free_port: Callable[[], int], tmp_path: Path) -> Settings:
    create_topics(embedded_broker, num_partitions=4, replication_factor=1)
    return Settings(
        broker=BrokerSettings(bootstrap_servers=embedded_broker),
        store=StoreSettings(root=tmp_path),
        endpoints=EndpointSettings(projector=free_port()),
    )


@asynccontextmanager
async def projector(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """A projector that is ready; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.projector", env=os.environ | to_environment(settings)
    )
    try:
        await wait_ready(settings)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def wait_ready(settings: Settings) -> None:
    async with grpc.aio.insecure_channel(settings.endpoints.address("projector")) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(600):
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError:
                answer = health_pb2.HealthCheckResponse()
            if answer.status == SERVING:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("the projector did not become ready")


def events(user_id: str, numbers: range) -> list[tuple[str, Event]]:
    return [
        (
            user_id,
            Event(
                event_id=f"{user_id}-{n}",
                user_id=user_id,
                item_id=f"i{n}",
                action=Action.ACTION_CLICK,
                event_time_ms=1_000_000_000_000 + n,
            ),
        )
        for n in numbers
    ]


async def wait_for_events(history: HistoryStore, user_id: str, num_events: int) -> None:
    for _ in range(600):
        if history.count(user_id) >= num_events:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{history.count(user_id)} events instead of {num_events}")


async def test_each_event_is_projected_once_though_the_projector_is_killed(settings: Settings) -> None:
    user_id = uuid.uuid4().hex
    async with AsyncProducer(settings.broker.bootstrap_servers) as producer:
        async with projector(settings) as first:
            with HistoryStore.open(settings.store.history_path, read_only=True) as history:
                await producer.send_many(INTERACTIONS, events(user_id, range(500)))
                await wait_for_events(history, user_id, 1)
                first.kill()
                await first.wait()
        # twice, as a producer may
        await producer.send_many(INTERACTIONS, events(user_id, range(400, 700)))
        async with projector(settings) as second:
            with HistoryStore.open(settings.store.history_path, read_only=True) as history:
                await wait_for_events(history, user_id, 700)
                kept = [event.item_id for event in history.get(user_id, 1_000)]
            assert kept == [f"i{n}" for n in range(700)]
            port = settings.endpoints.metrics_port("projector")
            url = f"http://{settings.endpoints.host}:{port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            assert "headrace_event_to_history_seconds_count" in page
            assert 'headrace_stream_lag_records{group="headrace-projector"' in page
            second.terminate()
            assert await asyncio.wait_for(second.wait(), 10) == 0
