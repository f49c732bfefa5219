"""The supervisor of `headrace up`: the embedded broker and every service as children of one process.

Starts them, waits until each is live (and ready, where a release is live), starts one that died again and
says so, and leaves none behind. It knows nothing of what the services do.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.errors import BackendUnavailable
from services.release import ReleasePublisher
from services.settings import Settings, to_environment
from streaming.errors import BrokerUnavailable
from streaming.topics import create_topics, existing_topics

# The order of starting; stopped in the other order, so that nobody calls what is already gone.
SERVICES = ("projector", "trends", "tokenizer", "generator", "ranker", "learner", "gateway")
BROKER = "broker"
_MODULES = {name: f"services.{name}" for name in SERVICES} | {BROKER: "services.broker_host"}
# Those that have something to serve only with a release.
SERVING = ("tokenizer", "generator", "ranker", "gateway")

Progress = Callable[[str, int, int], None]

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_POLL_INTERVAL_S = 0.2
_LOG_TAIL_LINES = 12
_MAX_DEATHS = 3
_DEATHS_WINDOW_S = 60.0


@dataclass
class Child:
    """One service as a child process, writing to its own log file."""

    name: str
    process: asyncio.subprocess.Process
    log_path: Path

    def log_tail(self) -> str:
        """The last lines it wrote."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])


class ChildDied(BackendUnavailable):
    """A service ended although nobody asked it to."""

    def __init__(self, child: Child) -> None:
        super().__init__(
            f"{child.name} ended with code {child.process.returncode}; its log is {child.log_path}"
        )
        self.child = child


class Stack:
    """Broker and services of one `settings`; an async context manager, or `start` and `stop`.

    `embedded_broker` starts the broker of the extra `embedded` on `settings.broker.bootstrap_servers`;
    without it, a broker must be there already.
    """

    def __init__(self, settings: Settings, *, embedded_broker: bool = True) -> None:
        self.settings = settings
        self.processes: dict[str, Child] = {}
        self.log_dir = settings.store.root / "logs"
        self._embedded_broker = embedded_broker

    async def start(self, progress: Progress | None = None) -> None:
        """Returns when every service answers; raises BackendUnavailable, and then nothing is left running."""
        report = progress or (lambda stage, num_done, num_total: None)
        check_ports(self.settings, embedded_broker=self._embedded_broker)
        try:
            await self._start_broker(report)
            for name in SERVICES:
                await self.start_service(name)
            await self._wait_serving("services live", "liveness", SERVICES, report)
            releases = await asyncio.to_thread(ReleasePublisher(self.settings).list)
            if any(release.state == RELEASE_STATE_LIVE for release in releases):
                await self._wait_serving("services ready", "", SERVING, report)
        except BaseException:
            await self.stop()
            raise

    async def start_service(self, name: str) -> Child:
        """Starts one service, also one that was stopped before, and returns without waiting for it."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log_path = self.log_dir / f"{name}.log"
        with log_path.open("ab") as log:
            process = await self._spawn(name, log)
        child = Child(name=name, process=process, log_path=log_path)
        self.processes[name] = child
        return child

    async def wait_ready(self, progress: Progress | None = None) -> None:
        """Returns when every serving service has loaded a live release and is warm."""
        report = progress or (lambda stage, num_done, num_total: None)
        await self._wait_serving("services ready", "", SERVING, report)

    async def keep(self, say: Callable[[str], None]) -> None:
        """Starts a service that ended again, and says so; a learner, say, goes on from its checkpoint.

        Never returns. Raises ChildDied for the broker, which is not ours to mend, and for a service that
        ended for the `_MAX_DEATHS`-th time within `_DEATHS_WINDOW_S`.
        """
        deaths_s: dict[str, list[float]] = {}
        while True:
            child = await self._first_dead()
            now_s = asyncio.get_running_loop().time()
            recent = [at_s for at_s in deaths_s.get(child.name, []) if now_s - at_s < _DEATHS_WINDOW_S]
            deaths_s[child.name] = [*recent, now_s]
            if child.name == BROKER or len(deaths_s[child.name]) >= _MAX_DEATHS:
                raise ChildDied(child)
            await self.start_service(child.name)
            say(f"{ChildDied(child)}; started again")

    async def _first_dead(self) -> Child:
        waits = {asyncio.ensure_future(child.process.wait()): child for child in self.processes.values()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()
        return waits[done.pop()]

    async def stop(self) -> None:
        """SIGTERM to every child, the gateway first; SIGKILL to those that stay; then the broker."""
        await _stop_all([self.processes[name] for name in reversed(SERVICES) if name in self.processes])
        await _stop_all([self.processes[name] for name in (BROKER,) if name in self.processes])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start_broker(self, report: Progress) -> None:
        report("broker", 0, 1)
        broker = self.settings.broker
        if self._embedded_broker:
            await self.start_service(BROKER)
            await self._wait_broker(broker.bootstrap_servers)
        await asyncio.to_thread(
            create_topics,
            broker.bootstrap_servers,
            num_partitions=broker.num_partitions,
            replication_factor=broker.replication_factor,
        )
        report("broker", 1, 1)

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

    async def _spawn(self, name: str, log: IO[bytes]) -> asyncio.subprocess.Process:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        threads = str(self.settings.torch_threads)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.launch", str(os.getpid()), _MODULES[name]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            env=inherited | {"OMP_NUM_THREADS": threads} | to_environment(self.settings),
            # Ctrl-C reaches the supervisor alone, which then stops the children in order.
            start_new_session=True,
        )

    async def _wait_serving(
        self, stage: str, health_name: str, names: tuple[str, ...], report: Progress
    ) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        waiting = set(names)
        report(stage, 0, len(names))
        while waiting:
            self._raise_if_dead()
            for name in sorted(waiting):
                if await is_serving(self.settings.endpoints.address(name), health_name):
                    waiting.discard(name)
                    report(stage, len(names) - len(waiting), len(names))
            if waiting and asyncio.get_running_loop().time() > deadline:
                raise BackendUnavailable(
                    f"not {stage.removeprefix('services ')} after {_START_TIMEOUT_S:.0f} s: "
                    f"{', '.join(sorted(waiting))}; logs are in {self.log_dir}"
                )
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


async def _stop_all(children: Sequence[Child]) -> None:
    """SIGTERM, and SIGKILL to those that stay."""
    running = [child for child in children if child.process.returncode is None]
    for child in running:
        child.process.terminate()
    waits = [asyncio.ensure_future(child.process.wait()) for child in running]
    if waits:
        await asyncio.wait(waits, timeout=_STOP_TIMEOUT_S)
    for child in running:
        if child.process.returncode is None:
            child.process.kill()
    await asyncio.gather(*waits)


async def is_serving(address: str, health_name: str) -> bool:
    """Whether the gRPC health service at `address` says SERVING for `health_name`."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=health_name), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ports_of(settings: Settings) -> dict[str, tuple[int, str]]:
    """Every port of the services: what it is for -> number, and the setting that moves it."""
    endpoints = settings.endpoints
    setting = "HEADRACE_ENDPOINTS__{}".format
    ports = {name: (endpoints.port(name), setting(name.upper())) for name in (*SERVICES, "console")}
    for name in SERVICES:
        ports[f"{name} metrics"] = (endpoints.metrics_port(name), setting("METRICS_OFFSET"))
    return ports


def check_ports(settings: Settings, *, embedded_broker: bool = False) -> None:
    """Raises BackendUnavailable, naming the first port that something else listens on."""
    ports = ports_of(settings)
    if embedded_broker:
        port = int(settings.broker.bootstrap_servers.rpartition(":")[2])
        ports[BROKER] = (port, "HEADRACE_BROKER__BOOTSTRAP_SERVERS")
    for what, (port, variable) in ports.items():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.endpoints.host, port))
            except OSError as error:
                raise BackendUnavailable(
                    f"port {port} ({what}) on {settings.endpoints.host} cannot be used: {error.strerror}; "
                    f"stop what listens there or set {variable}"
                ) from error


async def run_stack(
    stack: Stack, progress: Progress, started: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Starts the stack and keeps it until SIGINT or SIGTERM; then, or on any error, stops every child.

    `started` is called once, when everything answers; `say` gets a line for each service that had to be
    started again. Raises ChildDied as `Stack.keep` does.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)

    async def live() -> None:
        await stack.start(progress)
        started()
        await stack.keep(say)

    waits = [asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(live())]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for finished in done:
            finished.result()
    finally:
        for waiting in waits:
            waiting.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await stack.stop()
