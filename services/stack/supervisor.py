"""The supervisor of `headrace up`: the embedded broker and every service as children of one process.

Starts them, waits until each is live (and ready, where a release is live), and leaves none behind. A service
that dies takes no other with it: it is started again, after growing pauses, and that is reported; meanwhile
the stack is degraded, and the other services answer what they can. It knows nothing of what the services do.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from models.progress import Progress, quietly
from services.errors import BackendUnavailable
from services.releases.publisher import ReleasePublisher
from services.releases.store import open_release_store, release_store
from services.settings import Settings, to_environment
from services.stack.children import (
    BROKER,
    MODULES,
    SERVICES,
    SERVING,
    Child,
    ChildDied,
    process_of,
    processes_of,
    stop_all,
)
from services.stack.forks import Forks
from services.stack.ports import check_ports
from streaming.clients.topic_admin import create_topics, existing_topics
from streaming.errors import BrokerUnavailable

_FORMER_BROKER_FILE = "kafka.json"

_START_TIMEOUT_S = 120.0
_POLL_INTERVAL_S = 0.2
_PATIENCE_WITH_DEAD_S = 1.0
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 60.0
# After living for this long, a service's earlier deaths are forgotten.
_LONG_LIFE_S = 120.0


class Stack:
    """Broker and services of one `settings`; an async context manager, or `start` and `stop`.

    `embedded_broker` starts `streaming.broker` on `settings.broker.bootstrap_servers`;
    without it, a broker must be there already. `has_release`: whether one was live at the start.
    """

    def __init__(self, settings: Settings, *, embedded_broker: bool = True) -> None:
        self.settings = settings
        self.processes: dict[str, Child] = {}
        self.log_dir = settings.store.root / "logs"
        self.has_release = False
        self._embedded_broker = embedded_broker
        self._down: set[str] = set()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._forks = Forks()
        self._say: Callable[[str], None] = lambda line: None

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of all that it runs, by name; `template` is what the others are forked from."""
        pids = {name: child.process.pid for name, child in self.processes.items()}
        template = self._forks.template_pid
        return pids if template is None else pids | {"template": template}

    @property
    def degraded(self) -> list[str]:
        """The processes that are down at present and will be started again."""
        return sorted(self._down)

    async def start(self, progress: Progress = quietly, say: Callable[[str], None] | None = None) -> None:
        """Returns when every service answers, or is known not to; `say` gets a line for each that does not.

        Raises BackendUnavailable where nothing can be served (a port is taken, the broker does not come up),
        and then nothing is left running. From then on a service that dies is started again, until `stop`.
        """
        self._say = say or self._say
        open_release_store(self.settings.store.releases_url)
        check_ports(self.settings, embedded_broker=self._embedded_broker)
        try:
            await self._start_broker(progress)
            for name in processes_of(self.settings.layout):
                await self.start_service(name)
            for name in self.processes:
                self._keepers[name] = asyncio.ensure_future(self._keep(name))
            await self._wait_serving("services live", "liveness", SERVICES, progress)
            live = (await asyncio.to_thread(ReleasePublisher(self.settings).list)).live_id
            self.has_release = bool(live)
            if live:
                problem = await asyncio.to_thread(release_store(self.settings).problem, live)
                if problem:
                    where = self.settings.store.releases_url
                    self._say(
                        f"release {live} is live and cannot be loaded from {where} ({problem}): an older one "
                        "serves, or popular items; run `headrace train --from-topic`, bring its files back, "
                        "or promote one that `headrace release list` shows as loadable"
                    )
                else:
                    await self._wait_serving("services ready", "", SERVING, progress)
        except BaseException:
            await self.stop()
            raise

    async def start_service(self, name: str) -> Child:
        """Starts the process of one service, also one that was stopped before, without waiting for it."""
        name = process_of(name, self.settings.layout)
        log_path = self.log_dir / f"{name}.log"
        log = str(log_path) if self._can_log(log_path) else os.devnull
        process = await self._forks.start(name, MODULES[name], to_environment(self.settings), log)
        child = Child(name=name, process=process, log_path=log_path)
        self.processes[name] = child
        return child

    async def restart_service(self, name: str) -> None:
        """Stops the process of one service and starts it with the present settings."""
        name = process_of(name, self.settings.layout)
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await stop_all([self.processes[name]])
        self._down.discard(name)
        await self.start_service(name)
        self._keepers[name] = asyncio.ensure_future(self._keep(name))

    def _can_log(self, path: Path) -> bool:
        """Whether the log can be written; it cannot on a full disk, for one, and then nothing is kept."""
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            self._say(f"{path} cannot be written: {error.strerror}")
            return False
        return True

    async def wait_ready(self, progress: Progress = quietly) -> None:
        """Returns when every serving service has loaded a live release and is warm."""
        await self._wait_serving("services ready", "", SERVING, progress)

    async def _keep(self, name: str) -> None:
        """Starts a service again whenever it ends; never returns."""
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            child, began_s = self.processes[name], loop.time()
            await child.process.wait()
            self._down.add(name)
            if loop.time() - began_s > _LONG_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            last = child.log_tail(1)
            self._say(
                f"{ChildDied(child)}; started again in {pause_s:g} s" + (f". It said: {last}" if last else "")
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            try:
                await self.start_service(name)
            except BackendUnavailable as error:
                self._say(f"{name} was not started: {error}")
                continue
            self._down.discard(name)

    async def stop(self) -> None:
        """SIGTERM to every child, the gateway first; SIGKILL to those that stay; then the broker."""
        keepers, self._keepers = list(self._keepers.values()), {}
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        names = reversed(processes_of(self.settings.layout))
        await stop_all([self.processes[name] for name in names if name in self.processes])
        await stop_all([self.processes[name] for name in (BROKER,) if name in self.processes])
        await self._forks.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start_broker(self, progress: Progress) -> None:
        progress("broker", 0, 1)
        broker = self.settings.broker
        if self._embedded_broker:
            former = self.settings.store.broker_path / _FORMER_BROKER_FILE
            if former.exists():
                self._say(
                    f"{former} holds the records of the broker before this version, which this one does not "
                    "read: send them again with `headrace replay`, then delete it"
                )
            await self.start_service(BROKER)
            await self._wait_broker(broker.bootstrap_servers)
        await asyncio.to_thread(
            create_topics,
            broker.bootstrap_servers,
            num_partitions=broker.num_partitions,
            replication_factor=broker.replication_factor,
        )
        progress("broker", 1, 1)

    async def _wait_broker(self, bootstrap: str) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        host, _, port = bootstrap.rpartition(":")
        while True:
            self._raise_if_dead()
            if await asyncio.to_thread(_answers, host, int(port), bootstrap):
                return
            if asyncio.get_running_loop().time() > deadline:
                raise BackendUnavailable(f"the broker at {bootstrap} does not answer")
            await asyncio.sleep(_POLL_INTERVAL_S)

    def _raise_if_dead(self) -> None:
        for child in self.processes.values():
            if child.process.returncode is not None:
                raise ChildDied(child)

    async def _wait_serving(
        self, stage: str, health_name: str, names: tuple[str, ...], progress: Progress
    ) -> None:
        """Returns when all serve, or when the time is up or the others are down; says who does not."""
        loop = asyncio.get_running_loop()
        deadline, all_down_since = loop.time() + _START_TIMEOUT_S, None
        waiting = set(names)
        progress(stage, 0, len(names))
        while waiting:
            for name in sorted(waiting):
                if await is_serving(self.settings.endpoints.address(name), health_name):
                    waiting.discard(name)
                    progress(stage, len(names) - len(waiting), len(names))
            are_down = {process_of(name, self.settings.layout) for name in waiting} <= self._down
            all_down_since = (all_down_since or loop.time()) if waiting and are_down else None
            has_given_up = all_down_since is not None and loop.time() - all_down_since > _PATIENCE_WITH_DEAD_S
            if waiting and (has_given_up or loop.time() > deadline):
                who = ", ".join(sorted(waiting))
                self._say(f"not {stage.removeprefix('services ')} yet: {who}; the logs are in {self.log_dir}")
                return
            await asyncio.sleep(_POLL_INTERVAL_S if waiting else 0)


def _answers(host: str, port: int, bootstrap: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if probe.connect_ex((host, port)) != 0:
            return False
    try:
        existing_topics(bootstrap)
    except BrokerUnavailable:
        return False
    return True


async def is_serving(address: str, health_name: str) -> bool:
    """Whether the gRPC health service at `address` says SERVING for `health_name`."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=health_name), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def run_stack(
    stack: Stack, progress: Progress, started: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Starts the stack and keeps it until SIGINT or SIGTERM; then, or on any error, stops every child.

    `started` is called once, when every service that will answer does; `say` gets a line for each service
    that ended and is started again. Raises BackendUnavailable as `Stack.start` does.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)

    async def live() -> None:
        await stack.start(progress, say)
        started()
        await asyncio.Event().wait()

    waits = [asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(live())]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for finished in done:
            finished.result()
        say("stopping: every service ends its work and writes what it knows")
    finally:
        for waiting in waits:
            waiting.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await stack.stop()
