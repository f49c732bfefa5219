"""The RPC methods of `RecommenderService`: check, call, answer; nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from protos.headrace.v1 import recommend_pb2_grpc
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.recommend_pb2 import (
    ExplainRequest,
    ExplainResponse,
    GetUserRequest,
    GetUserResponse,
    RecommendRequest,
    RecommendResponse,
    RecommendStreamRequest,
    RecommendStreamResponse,
    TrackRequest,
    TrackResponse,
    TrackStreamRequest,
    TrackStreamResponse,
    UpsertItemsRequest,
    UpsertItemsResponse,
)
from services.errors import NotFound
from services.gateway import validation
from services.gateway.engine import RecommendationEngine
from services.gateway.intake import Intake
from services.rpc.admission import working_turn
from services.rpc.clients import remaining
from services.settings import GatewaySettings
from streaming.histories.fresh_history import FreshHistory

Context = grpc.aio.ServicerContext[Any, Any]

# How often an open RecommendStream checks whether any history changed, and if so its own user's.
_POLL_S = 0.05


class RecommenderServicer(recommend_pb2_grpc.RecommenderServiceServicer):
    """The public API on one engine, one history store and one intake of events and items."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        engine: RecommendationEngine,
        history: FreshHistory,
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._history = history
        self._intake = intake

    async def Recommend(self, request: RecommendRequest, context: Context) -> RecommendResponse:
        """k distinct available items, or why fewer."""
        validation.check_recommend(request, max_k=self._settings.max_k)
        return await self._engine.recommend(request, lambda: remaining(context))

    async def RecommendStream(
        self, request: RecommendStreamRequest, context: Context
    ) -> AsyncIterator[RecommendStreamResponse]:
        """An answer now, and another whenever an event of this user changed it, until the caller leaves.

        Only the first answer carries the caller's request_id: every answer is logged under its own.
        """
        validation.check_recommend(request.request, max_k=self._settings.max_k, prefix="request.")
        ask = RecommendRequest()
        ask.CopyFrom(request.request)
        shown: list[str] | None = None
        num_answered_events, version = -1, (-1, -1)
        while True:
            is_same, version = version == self._history.version, self._history.version
            num_events = num_answered_events if is_same else self._history.count(ask.user_id)
            if num_events != num_answered_events:
                response = await self._answer_in_stream(ask, context)
                num_answered_events = num_events
                ask.ClearField("request_id")
                item_ids = [item.item_id for item in response.recommendations]
                if item_ids != shown:
                    shown = item_ids
                    yield RecommendStreamResponse(response=response)
            await asyncio.sleep(_POLL_S)

    async def _answer_in_stream(self, ask: RecommendRequest, context: Context) -> RecommendResponse:
        """One answer under the unary call's deadline: the stream itself may stay open for hours."""
        loop = asyncio.get_running_loop()
        async with working_turn():
            # timed from here: waiting for a turn among a thousand streams is not a slow answer
            until = loop.time() + self._settings.default_deadline_s
            return await self._engine.recommend(ask, lambda: min(until - loop.time(), remaining(context)))

    async def Track(self, request: TrackRequest, context: Context) -> TrackResponse:
        """Answers once the broker has the event."""
        return TrackResponse(event_id=await self._intake.track(request.event, remaining(context)))

    async def TrackStream(
        self, request_iterator: AsyncIterator[TrackStreamRequest], context: Context
    ) -> TrackStreamResponse:
        """Writes events as they come, without waiting for one before the next."""
        return await self._intake.track_many(_events(request) async for request in request_iterator)

    async def UpsertItems(self, request: UpsertItemsRequest, context: Context) -> UpsertItemsResponse:
        """Announces all items, or none if one is wrong."""
        validation.check_upsert_items(request)
        await self._intake.announce(request.items, remaining(context))
        return UpsertItemsResponse(num_accepted=len(request.items))

    async def Explain(self, request: ExplainRequest, context: Context) -> ExplainResponse:
        """What the live release says of this user and item."""
        validation.check_explain(request)
        return await self._engine.explain(request.user_id, request.item_id, lambda: remaining(context))

    async def GetUser(self, request: GetUserRequest, context: Context) -> GetUserResponse:
        """The newest events of a user's history."""
        validation.check_get_user(request, max_limit=self._settings.history_limit)
        num_events = self._history.count(request.user_id)
        if not num_events:
            raise NotFound(f"user {request.user_id} has no history")
        limit = request.limit or validation.DEFAULT_USER_EVENTS
        return GetUserResponse(
            user_id=request.user_id,
            num_events=num_events,
            events=self._history.get(request.user_id, limit, with_shown=True),
        )


def _events(request: TrackStreamRequest) -> list[Event]:
    """A message's events in order. One without any counts as an empty event, and is refused like one."""
    if request.HasField("event") or not request.events:
        return [request.event, *request.events]
    return list(request.events)
