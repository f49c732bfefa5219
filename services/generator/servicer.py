"""`GeneratorService`: validates, queues for the model's thread, answers."""

from typing import Any

import grpc.aio
import structlog

from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.generator_pb2_grpc import GeneratorServiceServicer
from services.errors import NotReady
from services.generator.serving import GeneratorServing
from services.model_host.micro_batches import MicroBatcher
from services.rpc.clients import time_left
from services.wire.validation import MAX_K, RequestCheck


class GeneratorServicer(GeneratorServiceServicer):
    """Thin: the work is in `GeneratorServing`."""

    def __init__(
        self, serving: GeneratorServing, batcher: MicroBatcher[GenerateRequest, GenerateResponse]
    ) -> None:
        self._serving = serving
        self._batcher = batcher

    async def Generate(
        self, request: GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> GenerateResponse:
        """Candidates from the beam and from the dense head."""
        return await self.answer(request, time_left(context))

    async def answer(self, request: GenerateRequest, left_s: float) -> GenerateResponse:
        """`Generate` for a caller in this process, who gives it `left_s` seconds."""
        _validate(request)
        if not self._serving.is_ready:
            raise NotReady("no release is loaded yet")
        response = await self._batcher.answer(request, left_s)
        structlog.contextvars.bind_contextvars(
            release_id=response.release_id, num_candidates=len(response.candidates.item_ids)
        )
        return response


def _validate(request: GenerateRequest) -> None:
    check = RequestCheck()
    check.size(request.num_candidates, "num_candidates", MAX_K)
    check.size(request.beam, "beam", MAX_K)
    check.history(request.history)
    check.ids(request.exclude_item_ids, "exclude_item_ids")
    check.sources(request.disabled_sources)
    check.done()
