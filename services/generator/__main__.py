"""`python -m services.generator`: the generator as a process of its own."""

from functools import partial

from protos.headrace.v1 import generator_pb2, generator_pb2_grpc
from services.generator.servicer import GeneratorServicer
from services.generator.serving import GeneratorServing
from services.model_host.feed import HostFeed
from services.model_host.host import ModelHost
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings

NAME = "generator"
SERVICE = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name


def make_serving(settings: Settings) -> GeneratorServing:
    """What answers, by these settings."""
    return GeneratorServing(
        settings.search, settings.meaning, max_kept_users=settings.generator.max_kept_users
    )


def add_servicer(
    server: ServiceServer, settings: Settings, serving: GeneratorServing, thread: ModelThread
) -> GeneratorServicer:
    """`GeneratorService` on `server`."""
    batcher = MicroBatcher(
        thread, serving.generate_many, kind_of=serving.kind_of, max_batch=settings.generator.max_batch
    )
    servicer = GeneratorServicer(serving, batcher)
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server.server)
    return servicer


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    thread = ModelThread(settings.torch_threads)
    serving = make_serving(settings)
    add_servicer(server, settings, serving, thread)
    feed = HostFeed(settings, ModelHost(serving), thread, on_live=partial(server.set_ready, True))
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
