"""The processes of a stack as forks of one template (`services.stack.template`), for an event loop."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.environment import PREFIX
from services.errors import BackendUnavailable
from services.stack.launch import ORPHAN_S

_STOP_S = 5.0
_GONE_POLL_S = 0.05


class Forked:
    """One fork, with the part of `asyncio.subprocess.Process` that a supervisor needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """Its exit code, once it has ended; minus the signal's number where one ended it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal; nothing if it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended, and nobody has said so yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def note_end(self, code: int) -> None:
        """Its parent has seen it end."""
        self.returncode = code
        self._ended.set()


class Forks:
    """Starts modules as forks; the template is started with the first, and again after it died."""

    def __init__(self) -> None:
        self._template: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting: deque[asyncio.Future[Forked]] = deque()
        self._running: dict[int, Forked] = {}
        self._lock = asyncio.Lock()

    @property
    def template_pid(self) -> int | None:
        """The template's process id, while it runs."""
        return None if self._template is None else self._template.pid

    async def start(self, name: str, module: str, environment: Mapping[str, str], log_path: str) -> Forked:
        """Runs `main()` of a module in a process of its own, known as `name`, that writes to a log.

        `environment` holds its `HEADRACE_*` variables. Raises BackendUnavailable if the template ends.
        """
        async with self._lock:
            template = await self._living_template()
            started: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
            self._starting.append(started)
            request = {"name": name, "module": module, "environment": dict(environment), "log": log_path}
            assert template.stdin is not None
            template.stdin.write(json.dumps(request).encode() + b"\n")
            return await started

    async def stop(self) -> None:
        """Ends the template; whatever still runs ends with it."""
        template, self._template = self._template, None
        if template is None:
            return
        assert template.stdin is not None
        template.stdin.close()
        try:
            await asyncio.wait_for(template.wait(), _STOP_S)
        except TimeoutError:
            template.kill()
            await template.wait()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _living_template(self) -> asyncio.subprocess.Process:
        if self._template is not None and self._template.returncode is None:
            return self._template
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._template = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.stack.template"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=inherited | {"OMP_NUM_THREADS": "1"},  # threads do not survive a fork
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(self._template))
        return self._template

    async def _read(self, template: asyncio.subprocess.Process) -> None:
        """Takes what the template says until it ends.

        Cancelled (as all tasks are by a second Ctrl-C), it ends the template: nobody else would hear of its
        forks.
        """
        assert template.stdout is not None
        assert template.stdin is not None
        try:
            async for line in template.stdout:
                self._take(json.loads(line))
        except asyncio.CancelledError:
            template.stdin.close()
        code = await template.wait()
        while self._starting:
            error = BackendUnavailable(f"the process that services are forked from ended with code {code}")
            started = self._starting.popleft()
            if not started.done():
                started.set_exception(error)
        # they were told to end by the kernel; until they have, their ports are taken
        orphans, self._running = self._running, {}
        await asyncio.gather(*map(_end_of_orphan, orphans.values()))

    def _take(self, said: Mapping[str, Any]) -> None:
        if "started" in said:
            forked = self._running[said["started"]] = Forked(said["started"])
            started = self._starting.popleft()
            if started.done():  # whoever wanted it was cancelled meanwhile
                forked.terminate()
            else:
                started.set_result(forked)
        elif "ended" in said:
            self._running.pop(said["ended"]).note_end(said["code"])


async def _end_of_orphan(orphan: Forked) -> None:
    """Notes the end of a fork whose template is gone, as soon as it runs no more; kills one that takes longer
    than an orphan may."""
    loop = asyncio.get_running_loop()
    deadline_s, number = loop.time() + ORPHAN_S, signal.SIGTERM
    while _runs(orphan.pid):
        if loop.time() > deadline_s:
            number = signal.SIGKILL
            orphan.kill()
            break
        await asyncio.sleep(_GONE_POLL_S)
    orphan.note_end(-number)


def _runs(pid: int) -> bool:
    """Whether such a process is there and has not ended; it may wait for somebody to take note of that."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
