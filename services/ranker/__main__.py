"""`python -m services.ranker`: the ranker as a process of its own."""

from collections.abc import Callable
from operator import attrgetter

from protos.headrace.v1 import ranker_pb2, ranker_pb2_grpc
from services.model_host.feed import HostFeed
from services.model_host.host import ModelHost
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.ranker.servicer import RankerServicer
from services.ranker.serving import RankerServing
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings

NAME = "ranker"
SERVICE = ranker_pb2.DESCRIPTOR.services_by_name["RankerService"].full_name


def make_serving(settings: Settings) -> RankerServing:
    """What answers, by these settings."""
    return RankerServing(settings.learner.dedupe_window, search=settings.search, meaning=settings.meaning)


def add_servicer(
    server: ServiceServer,
    settings: Settings,
    serving: RankerServing,
    thread: ModelThread,
    loading: Callable[[], str],
) -> RankerServicer:
    """`RankerService` on `server`; `loading` names the release that is being taken up, if any."""
    batcher = MicroBatcher(
        thread, serving.rank_many, kind_of=attrgetter("release_id"), max_batch=settings.ranker.max_batch
    )
    servicer = RankerServicer(serving, batcher, loading)
    ranker_pb2_grpc.add_RankerServiceServicer_to_server(servicer, server.server)
    return servicer


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    thread = ModelThread(settings.torch_threads)
    serving = make_serving(settings)
    servicer = add_servicer(server, settings, serving, thread, lambda: feed.wanted_release_id)

    def on_live() -> None:
        servicer.note_swap()
        server.set_ready(True)

    feed = HostFeed(settings, ModelHost(serving), thread, on_live)
    await server.start([SERVICE])
    try:
        await server.run(feed.run())
    finally:
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
