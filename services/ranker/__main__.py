"""`python -m services.ranker`: build, wire, run, drain."""

import asyncio
from functools import partial
from operator import attrgetter

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1 import ranker_pb2, ranker_pb2_grpc
from protos.headrace.v1.release_pb2 import Release
from services.metrics import EVENTS_CONSUMED
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.ranker.servicer import RankerServicer
from services.ranker.serving import RankerServing
from services.releases.watcher import ReleaseWatcher
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings
from streaming.clients.follow import follow
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS, SEMANTIC_IDS

NAME = "ranker"


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    bootstrap = settings.broker.bootstrap_servers
    thread = ModelThread(settings.torch_threads)
    serving = RankerServing(settings.learner.dedupe_window, search=settings.search, meaning=settings.meaning)
    first_offsets: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()

    async def take_up(release: Release, bundle: ReleaseBundle) -> None:
        loaded = await asyncio.to_thread(serving.load, bundle)
        await thread.run(partial(serving.swap, loaded))
        servicer.note_swap()
        if not first_offsets.done():
            first_offsets.set_result(dict(bundle.meta.offsets))
        server.set_ready(True)

    async def put_items(records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(SEMANTIC_IDS).inc(len(records))
        await thread.run(partial(serving.put_items, [record.message for record in records]))

    async def put_events(records: list[Record]) -> None:
        EVENTS_CONSUMED.labels(INTERACTIONS).inc(len(records))
        await thread.run(partial(serving.put_events, [record.message for record in records]))

    async def count_events() -> None:
        # The first release brings the statistics up to its offsets; they go on from there for ever.
        await follow(bootstrap, INTERACTIONS, put_events, offsets=await first_offsets)

    watcher = ReleaseWatcher(settings, take_up, service=NAME)
    batcher = MicroBatcher(
        thread, serving.rank_many, kind_of=attrgetter("release_id"), max_batch=settings.ranker.max_batch
    )
    servicer = RankerServicer(serving, batcher, lambda: watcher.wanted_release_id)
    ranker_pb2_grpc.add_RankerServiceServicer_to_server(servicer, server.server)
    await server.start([ranker_pb2.DESCRIPTOR.services_by_name["RankerService"].full_name])
    try:
        await server.run(watcher.run(), follow(bootstrap, SEMANTIC_IDS, put_items), count_events())
    finally:
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
