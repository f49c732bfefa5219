"""Services behind the gateway, over the network: what the network says becomes a domain error."""

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
import structlog

from services.errors import BackendUnavailable, DeadlineExpired, WrongRelease
from services.gateway.models import Call
from services.rpc.clients import passed_on

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)

log = structlog.get_logger(__name__)


class Method(Protocol[Request, Response]):
    """A unary method of a stub."""

    def __call__(self, request: Request, *, timeout: float, metadata: Any) -> Awaitable[Response]: ...


def remote(service: str, method: Method[Request, Response]) -> Call[Request, Response]:
    """The method of `service`, for whoever knows no network."""

    async def call(request: Request, left_s: float) -> Response:
        try:
            return await method(request, timeout=left_s, metadata=passed_on())
        except grpc.aio.AioRpcError as error:
            raise _failure(service, error) from error

    return call


def _failure(
    backend: str, error: grpc.aio.AioRpcError
) -> DeadlineExpired | WrongRelease | BackendUnavailable:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExpired(f"the {backend} did not answer in time")
    if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
        return WrongRelease(f"the {backend} serves another release")
    log.warning("backend_failed", backend=backend, code=error.code().name, details=error.details())
    return BackendUnavailable(f"the {backend} does not answer")
