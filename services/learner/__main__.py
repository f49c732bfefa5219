"""The learner process: one gRPC server, and one thread that learns."""

import asyncio
import os

import torch

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc
from services.learner.loop import LearningLoop
from services.learner.servicer import LearnerServicer
from services.server import ServiceServer, run_service
from services.settings import Settings

_SERVICE = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name
# These wait for the batch at work and may copy or load a whole release.
_SLOW_METHODS = ("Checkpoint", "Promote", "Rollback")
_SLOW_DEADLINE_S = 60.0
_READY_INTERVAL_S = 0.2
# Learning can wait, an answer cannot: where both want a core, those who serve get it.
_NICENESS = 10


async def _learn(loop: LearningLoop, server: ServiceServer) -> None:
    """Runs the loop in its thread; on cancellation waits for its last checkpoint."""
    work = asyncio.ensure_future(asyncio.to_thread(loop.run))
    ready = False
    try:
        while not work.done():
            if loop.is_learning != ready:
                ready = loop.is_learning
                server.set_ready(ready)
            await asyncio.wait({work}, timeout=_READY_INTERVAL_S)
    finally:
        loop.stop()
        await work


async def serve(settings: Settings) -> None:
    """Builds, wires and runs the service until it is told to stop."""
    torch.set_num_threads(settings.torch_threads)
    loop = LearningLoop(settings)
    server = ServiceServer("learner", settings, deadlines_s=dict.fromkeys(_SLOW_METHODS, _SLOW_DEADLINE_S))
    learner_pb2_grpc.add_LearnerServiceServicer_to_server(LearnerServicer(loop), server.server)
    await server.start([_SERVICE])
    await server.run(_learn(loop, server))


def main() -> None:
    """`python -m services.learner`."""
    os.nice(_NICENESS)
    run_service("learner", serve)


if __name__ == "__main__":
    main()
