"""The gateway's process: builds its views and clients, wires them, runs, drains."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import grpc.aio
import structlog

from protos.headrace.v1 import (
    generator_pb2_grpc,
    learner_pb2_grpc,
    ranker_pb2_grpc,
    recommend_pb2,
    recommend_pb2_grpc,
    tokenizer_pb2_grpc,
)
from services.gateway.engine import RecommendationEngine
from services.gateway.intake import Intake
from services.gateway.models import Models, PairedModels
from services.gateway.recommendation_log import RecommendationLogWriter
from services.gateway.remote import remote
from services.gateway.servicer import RecommenderServicer
from services.gateway.views import Views
from services.gateway.web import Console
from services.rpc.clients import channel
from services.rpc.server import ServiceServer, run_service
from services.rpc.state import STATE_SERVICE, add_state_service
from services.settings import Settings
from streaming.clients.producer import AsyncProducer
from streaming.errors import BrokerUnavailable
from streaming.histories.fresh_history import FreshHistory
from streaming.histories.store import HistoryStore
from streaming.messages.topics import INTERACTIONS

# A broker that does not confirm is reported as such a little before the caller's time is over.
_CONFIRMATION_SHARE = 0.8
_RECONNECT_S = 0.5

NAME = "gateway"

log = structlog.get_logger(__name__)


def make_server(settings: Settings) -> ServiceServer:
    """The gateway's server with the deadline of each method."""
    gateway = settings.gateway
    return ServiceServer(
        NAME,
        settings,
        deadlines_s={
            "Recommend": gateway.default_deadline_s,
            "Explain": gateway.default_deadline_s,
            "Track": gateway.track_deadline_s,
            "UpsertItems": gateway.track_deadline_s,
            "TrackStream": math.inf,
        },
    )


async def serve(
    settings: Settings,
    server: ServiceServer | None = None,
    *,
    models: Models | None = None,
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    beside: Sequence[ServiceServer] = (),
) -> None:
    """Runs the gateway until it is told to stop; `server`, made by `make_server`, lets a test stop it.

    `models` of this process take the place of a generator and a ranker over the network; `background` is what
    else runs meanwhile, `beside` as in `ServiceServer.run`.
    """
    server = server or make_server(settings)
    producer = AsyncProducer(
        settings.broker.bootstrap_servers, timeout_s=settings.gateway.track_deadline_s * _CONFIRMATION_SHARE
    )
    backends = ("generator", "ranker", "tokenizer", "learner", NAME)
    channels = {name: channel(settings.endpoints.address(name)) for name in backends}
    models = models or _remote_models(channels)
    try:
        with HistoryStore.open(settings.store.history_path, read_only=True) as store:
            async with producer:
                gateway = _Gateway(settings, server, producer, FreshHistory(store), channels, models)
                await gateway.run(background, beside)
    finally:
        await asyncio.gather(*(each.close() for each in channels.values()))


def _remote_models(channels: Mapping[str, grpc.aio.Channel]) -> PairedModels:
    generator = generator_pb2_grpc.GeneratorServiceStub(channels["generator"])
    ranker = ranker_pb2_grpc.RankerServiceStub(channels["ranker"])
    return PairedModels(remote("generator", generator.Generate), remote("ranker", ranker.Rank))


class _Gateway:
    """The parts of a gateway, wired."""

    def __init__(
        self,
        settings: Settings,
        server: ServiceServer,
        producer: AsyncProducer,
        history: FreshHistory,
        channels: Mapping[str, grpc.aio.Channel],
        models: Models,
    ) -> None:
        self._settings = settings
        self._server = server
        self._producer = producer
        self._views = Views()
        self._log = RecommendationLogWriter(producer)
        tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channels["tokenizer"])
        engine = RecommendationEngine(
            settings,
            history=history,
            views=self._views,
            models=models,
            tokenize=remote("tokenizer", tokenizer.Tokenize),
            log=self._log,
        )
        servicer = RecommenderServicer(
            settings.gateway, engine=engine, history=history, intake=Intake(producer, history)
        )
        recommend_pb2_grpc.add_RecommenderServiceServicer_to_server(servicer, server.server)
        self._ready = asyncio.Event()
        self._console = Console(
            recommender=recommend_pb2_grpc.RecommenderServiceStub(channels[NAME]),
            learner=learner_pb2_grpc.LearnerServiceStub(channels["learner"]),
            views=self._views,
            latencies=engine.latencies,
            is_ready=self._ready.is_set,
        )
        add_state_service(server, settings)

    async def run(
        self, background: Sequence[Callable[[], Coroutine[Any, Any, None]]], beside: Sequence[ServiceServer]
    ) -> None:
        """Until the server is told to stop; writes what is left of the log."""
        endpoints = self._settings.endpoints
        recommender = recommend_pb2.DESCRIPTOR.services_by_name["RecommenderService"].full_name
        await self._server.start([recommender, STATE_SERVICE])
        await self._server.run(
            self._views.follow(self._settings.broker.bootstrap_servers),
            self._log.run(),
            self._console.run(endpoints.host, endpoints.port("console")),
            self._become_ready(),
            *(begin() for begin in background),
            beside=beside,
        )
        await self._log.flush()

    async def _become_ready(self) -> None:
        await _connect(self._producer)
        await self._views.caught_up.wait()
        self._ready.set()
        self._server.set_ready(True)


async def _connect(producer: AsyncProducer) -> None:
    """Waits until the broker takes records."""
    while True:
        try:
            await producer.send_many(INTERACTIONS, [])  # connects, and sends nothing
            return
        except BrokerUnavailable as error:
            log.warning("waiting_for_the_broker", error=str(error))
            await asyncio.sleep(_RECONNECT_S)


def main() -> None:
    """`python -m services.gateway`."""
    run_service(NAME, serve)


if __name__ == "__main__":
    main()
