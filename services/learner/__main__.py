"""The learner process: one gRPC server, and one thread that learns."""

import asyncio
import os

import torch

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.learner.loop import LearningLoop
from services.learner.servicer import LearnerServicer
from services.rpc.server import ServiceServer, run_service
from services.rpc.state import STATE_SERVICE, add_state_service
from services.settings import Settings
from streaming.clients.follow import follow
from streaming.messages.records import Record
from streaming.messages.topics import RELEASES

_SERVICE = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name
# These wait for the batch at work and may copy or load a whole release.
_SLOW_METHODS = ("Checkpoint", "Promote", "Rollback")
_SLOW_DEADLINE_S = 60.0
# Learning can wait, an answer cannot: where both want a core, those who serve get it.
_NICENESS = 10


async def _learn(loop: LearningLoop) -> None:
    """Runs the loop in its thread; on cancellation waits for its last checkpoint."""
    work = asyncio.ensure_future(asyncio.to_thread(loop.run))
    try:
        await asyncio.shield(work)
    finally:
        loop.stop()
        await work


async def _watch_releases(loop: LearningLoop, settings: Settings) -> None:
    """Tells the loop of every release that goes live, whoever announced it; until cancelled."""

    async def tell(records: list[Record]) -> None:
        for record in records:
            if record.message.state == RELEASE_STATE_LIVE:
                loop.went_live(record.message.release_id)

    await follow(settings.broker.bootstrap_servers, RELEASES, tell)


async def serve(settings: Settings) -> None:
    """Builds, wires and runs the service until it is told to stop."""
    torch.set_num_threads(settings.torch_threads)
    server = ServiceServer("learner", settings, deadlines_s=dict.fromkeys(_SLOW_METHODS, _SLOW_DEADLINE_S))
    events = asyncio.get_running_loop()

    def show(is_learning: bool) -> None:
        events.call_soon_threadsafe(server.set_ready, is_learning)

    loop = LearningLoop(settings, on_learning=show)
    learner_pb2_grpc.add_LearnerServiceServicer_to_server(LearnerServicer(loop), server.server)
    add_state_service(server, settings)
    await server.start([_SERVICE, STATE_SERVICE])
    await server.run(_learn(loop), _watch_releases(loop, settings))


def main() -> None:
    """`python -m services.learner`."""
    os.nice(_NICENESS)
    run_service("learner", serve)


if __name__ == "__main__":
    main()
