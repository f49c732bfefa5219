"""One gRPC server of one service: health, reflection, interceptors, metrics port, graceful stop.

Knows nothing of what the service does. Health has the name "liveness" (up) and, for "" and the
service's full names, readiness, which the service sets.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import grpc.aio
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.errors import InvalidSettings
from services.logging import configure_logging
from services.memory import keep_few_products
from services.metrics import serve_metrics
from services.rpc.descriptors import raise_limit, watch_open_files
from services.rpc.interceptors import RequestInterceptor
from services.settings import Settings, load_settings

LIVENESS = "liveness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

log = structlog.get_logger()


class ServiceServer:
    """A `grpc.aio` server for the service `name`; make it inside a running event loop.

    Add servicers to `server`, then `start`, then `run`. `deadlines_s` overrides the default deadline of
    single methods. A guest is a further server of a process: its metrics page shows what is of the service
    `name` alone, and it is stopped by the one that it runs beside.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        deadlines_s: Mapping[str, float] | None = None,
        is_guest: bool = False,
    ) -> None:
        self.name = name
        self._is_guest = is_guest
        self._settings = settings
        limits = settings.server
        self.server = grpc.aio.server(
            interceptors=[RequestInterceptor(name, limits, deadlines_s)],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", limits.max_message_bytes),
                # A second process on the port is a mistake, not a replica.
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_idle_ms", round(limits.max_connection_idle_s * 1e3)),
                ("grpc.keepalive_permit_without_calls", 1),
                (
                    "grpc.http2.min_ping_interval_without_data_ms",
                    round(limits.min_ping_interval_s * 1e3),
                ),
            ],
            # The interceptor refuses first, with RetryInfo; this is the backstop.
            maximum_concurrent_rpcs=limits.max_inflight * 4 + limits.max_streams + limits.max_watches,
        )
        self._health = health.aio.HealthServicer()
        self._names: list[str] = []
        self._updates: set[asyncio.Task[None]] = set()
        self._was_ready = False
        self._stop = asyncio.Event()
        self._stop_metrics: Callable[[], None] = lambda: None

    async def start(self, service_names: Sequence[str]) -> None:
        """Binds both ports and answers; live at once, not ready. Raises RuntimeError if a port is taken."""
        self._names = ["", *service_names]
        for name in self._names:
            await self._health.set(name, _NOT_SERVING)
        await self._health.set(LIVENESS, _SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        listed = [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(listed, self.server)  # type: ignore[arg-type,unused-ignore]
        endpoints = self._settings.endpoints
        address = endpoints.address(self.name)
        self.server.add_insecure_port(address)
        self._stop_metrics = serve_metrics(
            endpoints.host, endpoints.metrics_port(self.name), self.name, is_guest=self._is_guest
        )
        await self.server.start()
        log.info("started", server=self.name, address=address, metrics_port=endpoints.metrics_port(self.name))

    def set_ready(self, ready: bool) -> None:
        """Tells health checks whether requests can be answered; call it on the event loop.

        The objects that exist when this is first so, a catalogue and its statistics among them, are left out
        of garbage collections from then on: looking through half a million of them took 0.27 s on a busy
        machine, and no thread runs meanwhile.
        """
        if ready and not self._was_ready:
            self._was_ready = True
            gc.freeze()
        status = _SERVING if ready else _NOT_SERVING
        for name in self._names:
            task = asyncio.get_running_loop().create_task(self._health.set(name, status))
            self._updates.add(task)
            task.add_done_callback(self._updates.discard)

    def request_stop(self) -> None:
        """Ends `run` as SIGTERM does."""
        self._stop.set()

    async def run(
        self, *background: Coroutine[Any, Any, None], beside: "Sequence[ServiceServer]" = ()
    ) -> None:
        """Serves until SIGTERM, SIGINT or a failed background task, then stops gracefully.

        NOT_SERVING first, then requests in flight get the grace time, here and at the guests `beside` it at
        once; then the background tasks are cancelled and awaited. Raises SystemExit(1) if a
        background task had failed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        tasks = [asyncio.ensure_future(work) for work in (*background, watch_open_files())]
        failures: list[BaseException] = []

        def ended(task: asyncio.Future[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)
                self._stop.set()

        for task in tasks:
            task.add_done_callback(ended)
        try:
            await self._stop.wait()
        finally:
            await asyncio.gather(self.stop(), *(guest.stop() for guest in beside))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        for error in failures:
            log.error("background_task_failed", exc_info=error)
        log.info("stopped", failed=bool(failures))
        if failures:
            raise SystemExit(1)

    async def stop(self) -> None:
        """NOT_SERVING, then the grace time for requests in flight."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(self._settings.server.stop_grace_s)
        await asyncio.to_thread(self._stop_metrics)


def run_service(name: str, serve: Callable[[Settings], Awaitable[None]]) -> None:
    """The body of every `main()`: settings, log, event loop; a wrong setting is one line and exit code 2."""
    try:
        settings = load_settings()
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    keep_few_products()
    configure_logging(name, settings.log_level)
    log.info("open_files", limit=raise_limit())
    log.info("settings", **settings.model_dump(mode="json"))

    async def body() -> None:
        await serve(settings)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())
