"""What happens around every RPC: admission, default deadline, error -> status, request id, metrics, log.

Handlers raise domain errors and never touch status codes; `services.rpc.statuses` says what an error means to
the caller. Unary health calls pass untouched; health watches and reflection have a limit of their own.
"""

import asyncio
import contextlib
import inspect
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from services import errors, metrics
from services.rpc.admission import Admission, admission_var
from services.rpc.clients import REQUEST_ID, deadline_var, request_id_var
from services.rpc.statuses import code_of, status_of
from services.settings import ServerSettings

# Generic in the type stubs, not at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CODE = grpc.StatusCode
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_REQUEST_ID_PATTERN = re.compile(r"[\x21-\x7e]{1,128}")
_UNPARSABLE = object()

log = structlog.get_logger()


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of one service.

    `deadlines_s` gives single methods (`"Track"`) another default deadline than the settings'. Only
    calls with a unary answer have one: a stream may rightly stay open.
    """

    def __init__(
        self, service: str, settings: ServerSettings, deadlines_s: Mapping[str, float] | None = None
    ) -> None:
        self._service = service
        self._settings = settings
        self._deadlines_s = dict(deadlines_s or {})
        self._admission = Admission(service, settings)
        # assembled once: the lazy logger does that for each line, which costs as much as the line
        self._log = structlog.get_logger().bind()
        self._wrapped: dict[str, Handler] = {}
        self._answered = cache(lambda method, code: metrics.REQUESTS.labels(service, method, code))
        self._seconds = cache(lambda method: metrics.REQUEST_SECONDS.labels(service, method))

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The handler of the called method, wrapped; None if there is no such method."""
        path = handler_call_details.method
        handler = self._wrapped.get(path)
        if handler is None:
            plain = await continuation(handler_call_details)
            if plain is None:
                return None
            if path.startswith("/grpc."):
                handler = self._watched(plain) if plain.response_streaming else plain
            else:
                handler = self._wrap(plain, path.rpartition("/")[2])
            self._wrapped[path] = handler
        return handler

    def _watched(self, handler: Handler) -> Handler:
        """Health watches and reflection: streams with a limit of their own, so that health always answers."""
        behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def answer(request: Any, context: Context) -> None:
            try:
                with self._admission.watch():
                    # the health servicer writes to the context, reflection yields
                    result = behaviour(request, context)
                    if inspect.isawaitable(result):
                        await result
                    else:
                        async for message in result:
                            await context.write(message)
            except errors.Overloaded as error:
                await _abort(context, error, _request_id(context))

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        wrapped: Any = answer
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap(self, handler: Handler, method: str) -> Handler:
        parse = handler.request_deserializer

        def deserialize(body: bytes) -> Any:
            try:
                return parse(body) if parse is not None else body
            except DecodeError:
                # Raised later, inside the request: grpc.aio would answer UNKNOWN to it here.
                return _UNPARSABLE

        behaviour: Any = (
            (handler.stream_stream if handler.request_streaming else handler.unary_stream)
            if handler.response_streaming
            else (handler.stream_unary if handler.request_streaming else handler.unary_unary)
        )
        check = _checked_stream if handler.request_streaming else _checked
        deadline_s = self._deadlines_s.get(method, self._settings.default_deadline_s)

        async def answer(request: Any, context: Context) -> Any:
            async with self._request(method, context, deadline_s, stays_open=bool(handler.request_streaming)):
                result = behaviour(check(request), context)
                return await result if inspect.isawaitable(result) else result

        async def answer_stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with (
                self._request(method, context, None, stays_open=True),
                contextlib.aclosing(behaviour(check(request), context)) as messages,
            ):
                async for message in messages:
                    yield message

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(bool(handler.request_streaming), bool(handler.response_streaming))]
        wrapped: Any = answer_stream if handler.response_streaming else answer
        return make(
            wrapped, request_deserializer=deserialize, response_serializer=handler.response_serializer
        )

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, context: Context, deadline_s: float | None, *, stays_open: bool
    ) -> AsyncIterator[None]:
        request_id = _request_id(context)
        request_id_var.set(request_id)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        started = time.perf_counter()
        code = _CODE.OK.name
        admission_var.set(self._admission)
        try:
            with self._admission.stream() if stays_open else self._admission.call():
                has_deadline = context.time_remaining() is not None
                limit_s = None if has_deadline else deadline_s
                if limit_s is not None:
                    deadline_var.set(asyncio.get_running_loop().time() + limit_s)
                async with asyncio.timeout(limit_s):
                    yield
                code = _code_name(context)
        except asyncio.CancelledError:
            left = context.time_remaining()
            code = (_CODE.CANCELLED if left is None or left > 0 else _CODE.DEADLINE_EXCEEDED).name
            raise
        except grpc.aio.AbortError:
            code = _code_name(context)
            raise
        except Exception as error:
            code = code_of(error).name
            await _abort(context, error, request_id)
        finally:
            seconds = time.perf_counter() - started
            self._answered(method, code).inc()
            self._seconds(method).observe(seconds)
            self._log.info("request", method=method, code=code, latency_ms=round(seconds * 1e3, 2))


async def _abort(context: Context, error: Exception, request_id: str) -> None:
    status = status_of(error, request_id)
    if status.code == _CODE.INTERNAL.value[0]:
        log.error("request_failed", exc_info=error)
    metadata: list[tuple[str, str | bytes]] = [(REQUEST_ID, request_id)]
    if status.details:
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(code_of(error), status.message, tuple(metadata))


def _code_name(context: Context) -> str:
    code: Any = context.code()
    return _CODE_NAMES[code] if isinstance(code, int) else _CODE.OK.name if code is None else code.name


def _request_id(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and _REQUEST_ID_PATTERN.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _checked(request: Any) -> Any:
    if request is _UNPARSABLE:
        raise errors.InvalidRequest(("request", "the body is not a message of the method's request type"))
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
