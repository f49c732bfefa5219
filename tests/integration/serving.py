"""Services of a test run inside its event loop, on free ports, with a broker of their own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from services.rpc.clients import channel
from services.rpc.server import ServiceServer
from services.settings import BrokerSettings, EndpointSettings, Settings, StoreSettings
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from tests.conftest import find_free_port, find_port_pair

SERVING = health_pb2.HealthCheckResponse.SERVING

Serve = Callable[[Settings, ServiceServer], Awaitable[None]]


@contextlib.contextmanager
def own_broker(folder: Path) -> Iterator[str]:
    """A broker that no other test writes to, with the topics made."""
    with EmbeddedBroker(folder, f"127.0.0.1:{find_free_port()}") as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        yield broker.bootstrap


def make_settings(bootstrap: str, root: Path) -> Settings:
    """Settings with free ports and everything under `root`."""
    ports = {name: find_port_pair() for name in ("tokenizer", "generator", "ranker")}
    return Settings(
        broker=BrokerSettings(bootstrap_servers=bootstrap, num_partitions=2),
        store=StoreSettings(root=root),
        endpoints=EndpointSettings(**ports, metrics_offset=1),
    )


def send(settings: Settings, topic: str, *messages: tuple[str, Message]) -> None:
    """Writes (key, message) pairs."""
    with Producer(settings.broker.bootstrap_servers) as producer:
        for key, message in messages:
            producer.send(topic, key, message)
        producer.flush()


@contextlib.asynccontextmanager
async def serving(name: str, serve: Serve, settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """The service, and a channel to it; stopped the way SIGTERM does."""
    server = ServiceServer(name, settings)
    task = asyncio.ensure_future(serve(settings, server))
    connection = channel(settings.endpoints.address(name))
    try:
        yield connection
    finally:
        await connection.close()
        server.request_stop()
        await task


async def until(condition: Callable[[], Awaitable[Any]], *, timeout_s: float = 60.0) -> Any:
    """The condition's first true value; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{condition.__name__} did not come true in {timeout_s:g} s")
        await asyncio.sleep(0.05)


async def health(connection: grpc.aio.Channel, name: str = "") -> int:
    """The health of a service."""
    stub = health_pb2_grpc.HealthStub(connection)
    request = health_pb2.HealthCheckRequest(service=name)
    return int((await stub.Check(request, wait_for_ready=True, timeout=60)).status)


async def ready(connection: grpc.aio.Channel) -> None:
    """Returns when the service is ready."""

    async def is_ready() -> bool:
        return await health(connection) == SERVING

    await until(is_ready)


def violated_fields(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that a google.rpc.BadRequest names."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    detail = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[0].Unpack(detail)
    return [violation.field for violation in detail.field_violations]
