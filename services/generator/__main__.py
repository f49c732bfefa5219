"""`python -m services.generator`: build, wire, run, drain."""

import asyncio
from functools import partial

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1 import generator_pb2, generator_pb2_grpc
from protos.headrace.v1.release_pb2 import Release
from services.generator.servicer import GeneratorServicer
from services.generator.serving import GeneratorServing
from services.metrics import EVENTS_CONSUMED
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.releases.watcher import ReleaseWatcher
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings
from services.wire.user_key import user_key
from streaming.clients.follow import follow
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS, SEMANTIC_IDS

NAME = "generator"
# At most this many events delay a request; whatever of its own history is not done yet, it does itself.
_EVENTS_A_TURN = 8


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    thread = ModelThread(settings.torch_threads)
    serving = GeneratorServing(
        settings.search, settings.meaning, max_kept_users=settings.generator.max_kept_users
    )
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

    async def put_events(records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(INTERACTIONS).inc(len(records))
        for first in range(0, len(records), _EVENTS_A_TURN):
            some = [record.message for record in records[first : first + _EVENTS_A_TURN]]
            await thread.run(partial(serving.put_events, some))

    def now_live() -> None:
        nonlocal caught_up
        caught_up = True

    bootstrap = settings.broker.bootstrap_servers
    await server.start([generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name])
    try:
        await server.run(
            ReleaseWatcher(settings, take_up, service=NAME).run(),
            follow(bootstrap, SEMANTIC_IDS, put_items, on_caught_up=now_live),
            follow(
                bootstrap,
                INTERACTIONS,
                put_events,
                from_now=True,
                is_wanted=lambda key: serving.knows_user(user_key(key)),
            ),
        )
    finally:
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
