"""The gateway's HTTP port: the console page and the JSON it lives on.

Every answer about a user goes through the gateway's own gRPC port, so validation, deadlines, metrics
and the log line are those of any other client. Knows nothing of how answers are made.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from aiohttp import web
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.learner_pb2 import StatusRequest
from protos.headrace.v1.recommend_pb2 import GetUserRequest, RecommendRequest, TrackRequest
from protos.headrace.v1.release_pb2 import Release
from services.gateway.latency import LatencyWindow
from services.gateway.views import Views

if TYPE_CHECKING:
    from protos.headrace.v1.learner_pb2_grpc import LearnerServiceAsyncStub
    from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceAsyncStub

_PAGES = Path(__file__).parent / "console"
_FILES = {"/": "index.html", "/console.css": "console.css", "/console.js": "console.js"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_TIMEOUT_S = 5.0
_LEARNER_TIMEOUT_S = 0.8
_MAX_RELEASES = 20
_MAX_CURVE_POINTS = 400

_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """The aiohttp application. `is_ready` says whether the gateway answers."""

    def __init__(
        self,
        *,
        recommender: "RecommenderServiceAsyncStub",
        learner: "LearnerServiceAsyncStub",
        views: Views,
        latencies: LatencyWindow,
        is_ready: Callable[[], bool],
    ) -> None:
        self._recommender = recommender
        self._learner = learner
        self._items = views.items
        self._releases = views.releases
        self._latencies = latencies
        self._is_ready = is_ready
        self.app = web.Application(middlewares=[_answer_errors], client_max_size=64 * 1024)
        for path, name in _FILES.items():
            self.app.router.add_get(path, _static(_PAGES / name))
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/api/status", self._status)
        self.app.router.add_get("/api/recommend", self._recommend)
        self.app.router.add_get("/api/user", self._user)
        self.app.router.add_post("/api/track", self._track)

    async def run(self, host: str, port: int) -> None:
        """Serves until cancelled; raises OSError if the port is taken."""
        runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            await asyncio.get_running_loop().create_future()
        finally:
            await runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        ready = self._is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "ready": self._is_ready(),
                "num_items": len(self._items),
                "num_available": self._items.num_available,
                "num_answers": self._latencies.num_answers,
                "stages": self._latencies.summary(),
                "live_release_id": self._releases.live_id,
                "releases": [_release(release) for release in self._releases.last_created(_MAX_RELEASES)],
                "learner": await self._learner_status(),
            }
        )

    async def _learner_status(self) -> dict[str, Any] | None:
        try:
            status = await self._learner.Status(StatusRequest(), timeout=_LEARNER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None  # the page says that the learner does not answer
        answer = _dict(status)
        answer.pop("offsets")
        answer["curve"] = answer["curve"][:: 1 + len(answer["curve"]) // _MAX_CURVE_POINTS]
        return answer

    async def _recommend(self, request: web.Request) -> web.Response:
        ask = RecommendRequest(user_id=request.query.get("user_id", ""), k=_number(request, "k"))
        return web.json_response(_dict(await self._recommender.Recommend(ask, timeout=_TIMEOUT_S)))

    async def _user(self, request: web.Request) -> web.Response:
        ask = GetUserRequest(user_id=request.query.get("user_id", ""), limit=_number(request, "limit"))
        answer = _dict(await self._recommender.GetUser(ask, timeout=_TIMEOUT_S))
        for event in answer["events"]:
            event["title"] = self._items.title(event["item_id"])
        return web.json_response(answer)

    async def _track(self, request: web.Request) -> web.Response:
        # JSON only, by its content type: a foreign page cannot send that without the browser asking us first.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send application/json")
        try:
            event = ParseDict(await request.json(), Event())
        except (ValueError, ParseError) as error:
            raise web.HTTPBadRequest(text=f"not an event: {error}") from error
        return web.json_response(
            _dict(await self._recommender.Track(TrackRequest(event=event), timeout=_TIMEOUT_S))
        )


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Failures as JSON with one `error`; the safety headers on everything."""
    response: web.StreamResponse
    try:
        response = await handler(request)
    except grpc.aio.AioRpcError as error:
        status = _HTTP_STATUS.get(error.code(), 500)
        response = web.json_response({"error": error.details(), "code": error.code().name}, status=status)
    except web.HTTPException as error:
        response = web.json_response({"error": error.text, "code": error.reason}, status=error.status)
    response.headers.update(_HEADERS)
    return response


def _static(path: Path) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return serve


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not text.isascii() or not text.lstrip("-").isdigit() or len(text) > 9:
        raise web.HTTPBadRequest(text=f"{name}: must be a whole number")
    return int(text)


def _dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _release(release: Release) -> dict[str, Any]:
    answer = _dict(release)
    for name in ("files", "offsets", "uri"):
        answer.pop(name)
    return answer
