"""`RankerService`: validates, queues for the model's thread, answers."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio
import structlog

from protos.headrace.v1.ranker_pb2 import RankRequest, RankResponse
from protos.headrace.v1.ranker_pb2_grpc import RankerServiceServicer
from services.errors import NotReady
from services.model_host.micro_batches import MicroBatcher
from services.ranker.serving import RankerServing
from services.rpc.clients import time_left
from services.wire.validation import RequestCheck

# How long a request that began on a release waits for it here: loading takes about that long.
_MAX_WAIT_S = 1.0


class RankerServicer(RankerServiceServicer):
    """Thin: the work is in `RankerServing`. `loading` names the release that is being taken up, if any."""

    def __init__(
        self,
        serving: RankerServing,
        batcher: MicroBatcher[RankRequest, RankResponse],
        loading: Callable[[], str],
    ) -> None:
        self._serving = serving
        self._batcher = batcher
        self._loading = loading
        self._swapped = asyncio.Event()

    def note_swap(self) -> None:
        """Wakes the requests that wait for a release."""
        self._swapped.set()
        self._swapped = asyncio.Event()

    async def Rank(self, request: RankRequest, context: "grpc.aio.ServicerContext[Any, Any]") -> RankResponse:
        """Candidates, and those of the live sources, best first."""
        return await self.answer(request, time_left(context))

    async def answer(self, request: RankRequest, left_s: float) -> RankResponse:
        """`Rank` for a caller in this process, who gives it `left_s` seconds."""
        until_s = time.monotonic() + left_s
        _validate(request)
        if not self._serving.live_release_id:
            raise NotReady("no release is loaded yet")
        if not self._serving.has(request.release_id) and request.release_id == self._loading():
            # The generator took it up some moments before this service.
            waiting = asyncio.ensure_future(self._swapped.wait())
            await asyncio.wait([waiting], timeout=min(_MAX_WAIT_S, left_s / 2))
            waiting.cancel()
        response = await self._batcher.answer(request, until_s - time.monotonic())
        structlog.contextvars.bind_contextvars(
            release_id=response.release_id, num_candidates=len(response.item_ids)
        )
        return response


def _validate(request: RankRequest) -> None:
    check = RequestCheck()
    check.history(request.history)
    check.candidates(request.candidates)
    check.ids(request.exclude_item_ids, "exclude_item_ids")
    check.sources(request.disabled_sources)
    check.time(request.request_time_ms, "request_time_ms")
    check.done()
