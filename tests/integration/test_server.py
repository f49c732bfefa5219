"""The service harness on real channels: statuses, deadlines, admission, health, reflection, stop."""

import asyncio
import contextlib
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from protos.headrace.v1 import recommend_pb2 as pb
from protos.headrace.v1 import recommend_pb2_grpc as pb_grpc
from services.errors import BackendUnavailable, InvalidRequest
from services.rpc.clients import channel, remaining
from services.rpc.server import ServiceServer
from services.settings import EndpointSettings, ServerSettings, Settings, StoreSettings
from services.stack.ports import check_ports
from tests.conftest import find_port_pair

pytestmark = pytest.mark.integration

SERVICE = "headrace.v1.RecommenderService"


class Servicer(pb_grpc.RecommenderServiceServicer):
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.remaining_s = -1.0

    async def Recommend(self, request: pb.RecommendRequest, context: object) -> pb.RecommendResponse:
        if not request.user_id:
            raise InvalidRequest(("user_id", "is empty"))
        if request.user_id == "bug":
            raise RuntimeError("secret=42")
        self.remaining_s = remaining(context)  # type: ignore[arg-type]
        self.entered.set()
        if request.user_id == "slow":
            await self.gate.wait()
        return pb.RecommendResponse(request_id=request.request_id)

    async def RecommendStream(
        self, request: pb.RecommendStreamRequest, context: object
    ) -> AsyncIterator[pb.RecommendStreamResponse]:
        yield pb.RecommendStreamResponse()
        raise InvalidRequest(("request.user_id", "is empty"))

    async def TrackStream(
        self, request_iterator: AsyncIterator[pb.TrackStreamRequest], context: object
    ) -> pb.TrackStreamResponse:
        return pb.TrackStreamResponse(num_accepted=len([r async for r in request_iterator]))


class Running:
    def __init__(self, server: ServiceServer, servicer: Servicer, settings: Settings) -> None:
        self.server, self.servicer, self.settings = server, servicer, settings
        self.channel = channel(settings.endpoints.address("gateway"))
        self.stub = pb_grpc.RecommenderServiceStub(self.channel)


@contextlib.asynccontextmanager
async def running(tmp_path: Path, host: str = "127.0.0.1", **limits: float) -> AsyncIterator[Running]:
    settings = Settings(
        store=StoreSettings(root=tmp_path),
        endpoints=EndpointSettings(host=host, gateway=find_port_pair(), metrics_offset=1),
        server=ServerSettings(**limits),  # type: ignore[arg-type]
    )
    server, servicer = ServiceServer("gateway", settings), Servicer()
    pb_grpc.add_RecommenderServiceServicer_to_server(servicer, server.server)
    await server.start([SERVICE])
    task = asyncio.create_task(server.run())
    up = Running(server, servicer, settings)
    try:
        yield up
    finally:
        servicer.gate.set()
        await up.channel.close()
        server.request_stop()
        await task


async def failure(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    detail = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[0].Unpack(detail)
    return [violation.field for violation in detail.field_violations]


async def test_request_id_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        call = up.stub.Recommend(
            pb.RecommendRequest(user_id="u", request_id="x"), metadata=(("x-request-id", "abc"),)
        )
        assert (await call).request_id == "x"
        assert dict(await call.trailing_metadata())["x-request-id"] == "abc"


async def test_errors_become_statuses(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        error = await failure(up.stub.Recommend(pb.RecommendRequest()))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error) == ["user_id"]
        error = await failure(up.stub.Recommend(pb.RecommendRequest(user_id="bug")))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (error.details() or "")
        error = await failure(up.stub.Explain(pb.ExplainRequest()))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unparsable_bodies_are_the_callers_fault(tmp_path: Path) -> None:
    body = b"\x0a\xff\xff\xff\xff\x0f"
    async with running(tmp_path) as up:
        unary = up.channel.unary_unary(f"/{SERVICE}/Recommend")
        error = await failure(unary(body))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error) == ["request"]
        stream = up.channel.stream_unary(f"/{SERVICE}/TrackStream")
        error = await failure(stream(iter([body])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_streaming_handlers_are_covered(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        call = up.stub.RecommendStream(pb.RecommendStreamRequest())
        answers = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            answers.extend([answer async for answer in call])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violations(caught.value) == ["request.user_id"]
        requests = [pb.TrackStreamRequest()] * 3
        assert (await up.stub.TrackStream(iter(requests))).num_accepted == 3


async def test_default_deadline_binds_a_caller_without_one(tmp_path: Path) -> None:
    async with running(tmp_path, default_deadline_s=0.2) as up:
        error = await failure(up.stub.Recommend(pb.RecommendRequest(user_id="slow")))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < up.servicer.remaining_s < 0.2


async def test_remaining_is_less_than_the_callers_deadline(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        await up.stub.Recommend(pb.RecommendRequest(user_id="u"), timeout=1.0)
        assert 0 < up.servicer.remaining_s < 1.0


async def test_excess_is_refused_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, max_inflight=1) as up:
        first = asyncio.ensure_future(up.stub.Recommend(pb.RecommendRequest(user_id="slow")))
        await up.servicer.entered.wait()
        error = await failure(up.stub.Recommend(pb.RecommendRequest(user_id="u")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status is not None
        assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
        up.servicer.gate.set()
        await first
        await up.stub.Recommend(pb.RecommendRequest(user_id="u"))


async def test_health_reflection_and_metrics(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        health = health_pb2_grpc.HealthStub(up.channel)

        async def status(name: str) -> int:
            return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

        assert await status("liveness") == health_pb2.HealthCheckResponse.SERVING
        assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING
        up.server.set_ready(True)
        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        assert await status(SERVICE) == health_pb2.HealthCheckResponse.SERVING

        reflection = reflection_pb2_grpc.ServerReflectionStub(up.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in reflection.ServerReflectionInfo(iter([request])):
            assert SERVICE in [s.name for s in answer.list_services_response.service]

        await up.stub.Recommend(pb.RecommendRequest(user_id="u"))
        url = f"http://127.0.0.1:{up.settings.endpoints.metrics_port('gateway')}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert 'headrace_requests_total{code="OK",method="Recommend",service="gateway"}' in page


@pytest.mark.case("HEADRACE_ENDPOINTS__HOST=::1: doctor, up")
async def test_it_serves_on_ipv6_and_a_port_taken_there_is_named(tmp_path: Path) -> None:
    async with running(tmp_path, host="::1") as up:
        assert (await up.stub.Recommend(pb.RecommendRequest(user_id="u", request_id="r"))).request_id == "r"
        url = f"http://[::1]:{up.settings.endpoints.metrics_port('gateway')}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "headrace_requests_total" in page
        with pytest.raises(BackendUnavailable, match="on ::1 cannot be used"):
            await asyncio.to_thread(check_ports, up.settings)


async def test_sigterm_lets_requests_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        call = asyncio.ensure_future(up.stub.Recommend(pb.RecommendRequest(user_id="slow", request_id="r")))
        await up.servicer.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        up.servicer.gate.set()
        assert (await call).request_id == "r"


async def test_a_failed_background_task_ends_the_service(tmp_path: Path) -> None:
    settings = Settings(
        store=StoreSettings(root=tmp_path),
        endpoints=EndpointSettings(gateway=find_port_pair(), metrics_offset=1),
    )
    server = ServiceServer("gateway", settings)
    await server.start([])

    async def fail() -> None:
        raise OSError("broken")

    with pytest.raises(SystemExit) as caught:
        await server.run(fail())
    assert caught.value.code == 1
