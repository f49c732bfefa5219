"""Limits that do not hurt the innocent: idle streams and watches, pings, open files."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.headrace.v1 import recommend_pb2, recommend_pb2_grpc
from services.settings import Settings, to_environment
from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.topic_admin import create_topics
from tests.cases.test_meaning import Record
from tests.cases.world import World
from tests.conftest import find_free_port
from tests.integration.learner_world import small_settings

pytestmark = pytest.mark.integration

SERVING = health_pb2.HealthCheckResponse.SERVING


async def first_of(stream: AsyncIterator[object]) -> object:
    """A stream's first message; the stream stays open."""
    return await anext(aiter(stream))


@pytest.mark.case("64 idle `RecommendStream`s, then 200; 300 idle health watches")
async def test_idle_streams_and_watches_keep_nobody_out(world: World, record_property: Record) -> None:
    address = world.settings.endpoints.address("gateway")
    request = recommend_pb2.RecommendRequest(user_id="somebody", k=5)
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address) as other:
        stub = recommend_pb2_grpc.RecommenderServiceStub(channel)
        health = health_pb2_grpc.HealthStub(other)
        streams = [
            stub.RecommendStream(recommend_pb2.RecommendStreamRequest(request=request), timeout=120)
            for _ in range(200)
        ]
        watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=120) for _ in range(300)]
        await asyncio.gather(*map(first_of, streams), *map(first_of, watches))
        for _ in range(20):
            answer = await stub.Recommend(request, timeout=30)
            assert len(answer.recommendations) == 5
            checked = await health.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert checked.status == SERVING
        record_property("figure", f"{len(streams)} streams and {len(watches)} watches open")
        for call in (*streams, *watches):
            call.cancel()


@pytest.mark.case("a client that pings an idle stream")
async def test_a_client_may_ping_down_to_the_documented_interval(world: World) -> None:
    interval_ms = round(world.settings.server.min_ping_interval_s * 1_000) + 500
    options = [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    address = world.settings.endpoints.address("gateway")
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = recommend_pb2_grpc.RecommenderServiceStub(channel)
        request = recommend_pb2.RecommendRequest(user_id="pinging", k=5)
        stream = stub.RecommendStream(recommend_pb2.RecommendStreamRequest(request=request), timeout=120)
        await first_of(stream)
        # three strikes are what a server bears with by default
        await asyncio.sleep(5 * interval_ms / 1_000)
        assert not stream.done()
        stream.cancel()


@pytest.mark.case("`ulimit -n 256`, 300 idle connections")
async def test_open_files_are_raised_to_what_the_system_allows(tmp_path: Path) -> None:
    """The soft limit is 256, the hard one is not: 300 connections and a request are served."""
    settings = small_settings(f"127.0.0.1:{find_free_port()}", tmp_path)
    with EmbeddedBroker(tmp_path / "broker", settings.broker.bootstrap_servers) as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        with gateway_with_files(settings, 'ulimit -S -n 256; exec "$0" -m services.gateway'):
            channel = grpc.aio.insecure_channel(settings.endpoints.address("gateway"))
            async with channel:
                stub = recommend_pb2_grpc.RecommenderServiceStub(channel)
                request = recommend_pb2.RecommendRequest(user_id="u", k=5)
                await stub.Recommend(request, timeout=60, wait_for_ready=True)
                with contextlib.ExitStack() as idle:
                    for _ in range(300):
                        port = settings.endpoints.port("gateway")
                        idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                    async with grpc.aio.insecure_channel(settings.endpoints.address("gateway")) as fresh:
                        late = recommend_pb2_grpc.RecommenderServiceStub(fresh)
                        await late.Recommend(request, timeout=30, wait_for_ready=True)


@contextlib.contextmanager
def gateway_with_files(settings: Settings, script: str) -> "contextlib.AbstractContextManager[None]":  # type: ignore[misc]
    """A gateway started by a shell script."""
    command = ["sh", "-c", script, sys.executable]
    with subprocess.Popen(
        command, env=os.environ | to_environment(settings), stdout=subprocess.DEVNULL
    ) as one:
        try:
            yield  # type: ignore[misc]
        finally:
            one.terminate()
