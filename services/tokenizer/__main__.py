"""`python -m services.tokenizer`: build, wire, run, drain."""

import asyncio
from functools import partial

from models.artifacts.release import ReleaseBundle
from protos.headrace.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from protos.headrace.v1.release_pb2 import Release
from services.model_host.model_thread import ModelThread
from services.releases.watcher import ReleaseWatcher
from services.rpc.server import ServiceServer, run_service
from services.settings import Settings
from services.tokenizer.content import ContentEmbedder
from services.tokenizer.rejects import Rejects
from services.tokenizer.servicer import TokenizerServicer
from services.tokenizer.serving import TokenizerServing
from services.tokenizer.waiting_items import WaitingItems
from streaming.clients.follow import follow
from streaming.clients.producer import AsyncProducer
from streaming.messages.topics import ITEMS, SEMANTIC_IDS

NAME = "tokenizer"


async def serve(settings: Settings, server: ServiceServer | None = None) -> None:
    """Runs the service until it is told to stop; `server` lets a test stop it."""
    server = server or ServiceServer(NAME, settings)
    bootstrap = settings.broker.bootstrap_servers
    thread = ModelThread(settings.torch_threads)
    serving = TokenizerServing(ContentEmbedder())
    producer, rejects = AsyncProducer(bootstrap), Rejects(bootstrap)
    waiting = WaitingItems(bootstrap, serving, thread, producer, rejects)

    async def take_up(release: Release, bundle: ReleaseBundle) -> None:
        index = await asyncio.to_thread(serving.load, bundle)
        swap = partial(serving.swap, release.release_id, release.created_time_ms, index)
        moved = await thread.run(swap)
        await thread.run(serving.health)
        server.set_ready(True)
        waiting.note_release()
        await waiting.publish(moved.sids)
        waiting.put_again(moved.without_code)

    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(
        TokenizerServicer(serving, thread), server.server
    )
    await server.start([tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name])
    try:
        await server.run(
            ReleaseWatcher(settings, take_up, services=[NAME]).run(),
            follow(bootstrap, SEMANTIC_IDS, waiting.put_sids, on_caught_up=waiting.note_known_sids),
            follow(
                bootstrap,
                ITEMS,
                waiting.put_items,
                on_caught_up=waiting.note_known_items,
                on_malformed=rejects.put_malformed,
                with_tombstones=True,
            ),
            rejects.run(),
            waiting.run(),
        )
    finally:
        await producer.close()
        await asyncio.to_thread(rejects.close)
        thread.close()


def main() -> None:
    """The entry point."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
