"""`python -m services.serving`: gateway, generator and ranker in one process."""

from services.gateway import __main__ as gateway
from services.gateway.models import PairedModels
from services.generator import __main__ as generator
from services.model_host.feed import HostFeed
from services.model_host.host import ModelHost
from services.model_host.model_thread import ModelThread
from services.ranker import __main__ as ranker
from services.rpc.server import ServiceServer, run_service
from services.serving.hosted_models import HostedModels
from services.settings import Settings

NAME = "serving"


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs all three until they are told to stop; `server`, the gateway's, lets a test stop them.

    `Generate` and `Rank` are answered on their own ports too, for whoever asks them.
    """
    server = server or gateway.make_server(settings)
    generator_server = ServiceServer(generator.NAME, settings, is_guest=True)
    ranker_server = ServiceServer(ranker.NAME, settings, is_guest=True)
    thread = ModelThread(settings.torch_threads)
    searching, ranking = generator.make_serving(settings), ranker.make_serving(settings)
    searches = generator.add_servicer(generator_server, settings, searching, thread)
    ranks = ranker.add_servicer(ranker_server, settings, ranking, thread, lambda: feed.wanted_release_id)

    def on_live() -> None:
        ranks.note_swap()
        generator_server.set_ready(True)
        ranker_server.set_ready(True)

    host = ModelHost(searching, ranking)
    feed = HostFeed(settings, host, thread, on_live)
    models = HostedModels(
        host,
        searching,
        ranking,
        thread,
        paired=PairedModels(searches.answer, ranks.answer),
        max_batch=settings.generator.max_batch,
    )
    try:
        await generator_server.start([generator.SERVICE])
        await ranker_server.start([ranker.SERVICE])
        await gateway.serve(
            settings, server, models=models, background=[feed.run], beside=[generator_server, ranker_server]
        )
    finally:
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
