"""The processes of a stack: which there are, each with its log, and how they are ended."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.errors import BackendUnavailable
from services.stack.forks import Forked

SERVICES = ("projector", "trends", "tokenizer", "generator", "ranker", "learner", "gateway")
BROKER = "broker"
# One process of the layout "together" for three services.
TOGETHER = "serving"
_SHARING = ("generator", "ranker", "gateway")
MODULES = {name: f"services.{name}.__main__" for name in (*SERVICES, TOGETHER)} | {
    BROKER: "services.stack.broker_host"
}
# Those that have something to serve only with a release.
SERVING = ("tokenizer", "generator", "ranker", "gateway")

_STOP_TIMEOUT_S = 20.0


def process_of(service: str, layout: str) -> str:
    """The name of the process that a service runs in."""
    return TOGETHER if layout == "together" and service in _SHARING else service


def processes_of(layout: str) -> list[str]:
    """The processes of the services, in the order of starting.

    They are stopped in reverse, so that nobody calls what is already gone.
    """
    names = [process_of(service, layout) for service in SERVICES if service not in _SHARING]
    return names + list(dict.fromkeys(process_of(service, layout) for service in _SHARING))


_LOG_TAIL_LINES = 12


@dataclass
class Child:
    """One service as a child process, writing to its own log file."""

    name: str
    process: Forked
    log_path: Path

    def log_tail(self, num_lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines it wrote; empty if they cannot be read."""
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-num_lines:])


class ChildDied(BackendUnavailable):
    """A service ended although nobody asked it to."""

    def __init__(self, child: Child) -> None:
        super().__init__(
            f"{child.name} ended with code {child.process.returncode}; its log is {child.log_path}"
        )
        self.child = child


async def stop_all(children: Sequence[Child]) -> None:
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
