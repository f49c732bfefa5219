"""The learner's RPCs: each hands its work to the learning thread, which does it between two batches."""

import asyncio
from typing import Any

import grpc.aio

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc
from services.errors import InvalidRequest
from services.learner.loop import LearningLoop

Context = grpc.aio.ServicerContext[Any, Any]


class LearnerServicer(learner_pb2_grpc.LearnerServiceServicer):
    """Status answers from the last snapshot; everything else waits for the learning thread."""

    def __init__(self, loop: LearningLoop) -> None:
        self._loop = loop

    async def Status(
        self, request: learner_pb2.StatusRequest, context: Context
    ) -> learner_pb2.StatusResponse:
        """State, quality and position as of the last batch."""
        return self._loop.status

    async def Checkpoint(
        self, request: learner_pb2.CheckpointRequest, context: Context
    ) -> learner_pb2.CheckpointResponse:
        """Writes a checkpoint now; NotReady before the first release."""
        num_learned = await asyncio.wrap_future(self._loop.submit(self._loop.checkpoint))
        return learner_pb2.CheckpointResponse(num_events_learned=num_learned)

    async def Pause(self, request: learner_pb2.PauseRequest, context: Context) -> learner_pb2.PauseResponse:
        """Stops reading the stream after the batch at work."""
        await asyncio.wrap_future(self._loop.submit(self._loop.pause))
        return learner_pb2.PauseResponse()

    async def Resume(
        self, request: learner_pb2.ResumeRequest, context: Context
    ) -> learner_pb2.ResumeResponse:
        """Goes on reading where it paused."""
        await asyncio.wrap_future(self._loop.submit(self._loop.resume))
        return learner_pb2.ResumeResponse()

    async def Promote(
        self, request: learner_pb2.PromoteRequest, context: Context
    ) -> learner_pb2.PromoteResponse:
        """Makes a release live; the learner goes on from its own weights."""
        if not request.release_id:
            raise InvalidRequest(("release_id", "must be given"))
        release = await asyncio.wrap_future(self._loop.submit(lambda: self._loop.promote(request.release_id)))
        return learner_pb2.PromoteResponse(release=release)

    async def Rollback(
        self, request: learner_pb2.RollbackRequest, context: Context
    ) -> learner_pb2.RollbackResponse:
        """Makes the live release's parent live, and takes the learner back to the parent's weights."""
        reason = request.reason or "rolled back by an operator"
        release = await asyncio.wrap_future(self._loop.submit(lambda: self._loop.rollback(reason)))
        return learner_pb2.RollbackResponse(release=release)
