"""`python -m services.generator`: build, wire, run, drain."""

import asyncio
from functools import partial

from models.release import ReleaseBundle
from protos.headrace.v1 import generator_pb2, generator_pb2_grpc
from protos.headrace.v1.release_pb2 import Release
from services.follow import follow
from services.generator.servicer import GeneratorServicer
from services.generator.serving import GeneratorServing
from services.metrics import EVENTS_CONSUMED
from services.micro_batches import MicroBatcher
from services.model_thread import ModelThread
from services.release import ReleaseWatcher
from services.server import ServiceServer, run_service
from services.settings import Settings
from streaming.records import Record
from streaming.topics import SEMANTIC_IDS

NAME = "generator"


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    thread = ModelThread(settings.torch_threads)
    serving = GeneratorServing(settings.search)
    batcher = MicroBatcher(
        thread, serving.generate_many, kind_of=serving.kind_of, max_batch=settings.generator.max_batch
    )
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(
        GeneratorServicer(serving, batcher), server.server
    )
    caught_up = False

    async def take_up(release: Release, bundle: ReleaseBundle) -> None:
        loaded = await asyncio.to_thread(serving.load, bundle)
        await thread.run(partial(serving.swap, loaded))
        server.set_ready(True)

    async def put_items(records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(SEMANTIC_IDS).inc(len(records))
        sids = [record.message for record in records]
        await thread.run(partial(serving.put_items, sids, is_live=caught_up))

    def now_live() -> None:
        nonlocal caught_up
        caught_up = True

    bootstrap = settings.broker.bootstrap_servers
    await server.start([generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name])
    try:
        await server.run(
            ReleaseWatcher(settings, take_up, service=NAME).run(),
            follow(bootstrap, SEMANTIC_IDS, put_items, on_caught_up=now_live),
        )
    finally:
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
