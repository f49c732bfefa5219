"""`TokenizerService`: validates, queues for the model's thread, answers."""

from functools import partial
from typing import Any

import grpc.aio
import structlog

from protos.headrace.v1.tokenizer_pb2 import (
    CodebookLevel,
    DetokenizeRequest,
    DetokenizeResponse,
    GetCodebookRequest,
    GetCodebookResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceServicer
from services.model_host.model_thread import ModelThread
from services.tokenizer.serving import TokenizerServing
from services.wire.validation import RequestCheck

_MAX_IDS = 1_000


class TokenizerServicer(TokenizerServiceServicer):
    """Thin: the work is in `TokenizerServing`."""

    def __init__(self, serving: TokenizerServing, thread: ModelThread) -> None:
        self._serving = serving
        self._thread = thread

    async def Tokenize(
        self, request: TokenizeRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> TokenizeResponse:
        """The live semantic IDs of known items."""
        check = RequestCheck()
        check.ids(request.item_ids, "item_ids", _MAX_IDS)
        check.done()
        structlog.contextvars.bind_contextvars(release_id=self._serving.release_id)
        sids = await self._thread.answer(context, partial(self._serving.tokens, request.item_ids))
        return TokenizeResponse(sids=sids)

    async def Detokenize(
        self, request: DetokenizeRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> DetokenizeResponse:
        """The items of semantic IDs, in order."""
        check = RequestCheck()
        check.that(len(request.sids) <= _MAX_IDS, "sids", f"at most {_MAX_IDS} are taken")
        for i, sid in enumerate(request.sids[:_MAX_IDS]):
            check.that(len(sid.codes) > 0, f"sids[{i}].codes", "must be given")
        check.done()
        structlog.contextvars.bind_contextvars(release_id=self._serving.release_id)
        item_ids = await self._thread.answer(context, partial(self._serving.detokenize, request.sids))
        return DetokenizeResponse(item_ids=item_ids)

    async def GetCodebook(
        self, request: GetCodebookRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> GetCodebookResponse:
        """The live codebook and its health."""
        return await self._thread.answer(context, self._codebook)

    def _codebook(self) -> GetCodebookResponse:
        index, health = self._serving.index, self._serving.health()
        levels = zip(health.usage_ratio_L, health.quantisation_error_L, strict=True)
        return GetCodebookResponse(
            codebook_version=index.codebook.version,
            release_id=self._serving.release_id,
            codebook_size=index.codebook.codebook_size,
            levels=[CodebookLevel(usage_ratio=usage, quantisation_error=error) for usage, error in levels],
            num_items=health.num_items,
            collision_ratio=health.collision_ratio,
        )
