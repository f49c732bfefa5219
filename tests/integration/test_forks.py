"""Services forked from one template: exit codes, logs, settings, and an end with whoever started them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.stack.forks import Forked, Forks, _runs

pytestmark = pytest.mark.integration

_MODULE = """
import os, signal, sys, time

def main():
    print(os.environ.get("HEADRACE_SAYS"), os.environ.get("HEADRACE_LEFT_OVER"), flush=True)
    if os.environ["HEADRACE_SAYS"] == "leave":
        sys.exit(3)
    if os.environ["HEADRACE_SAYS"] == "fail":
        raise ValueError("on purpose")
    time.sleep(60)
"""


@pytest.fixture
async def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Forks]:
    (tmp_path / "sleeper.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("HEADRACE_LEFT_OVER", "1")
    forks = Forks()
    yield forks
    await forks.stop()


async def ended(forked: Forked) -> int:
    return await asyncio.wait_for(forked.wait(), 20)


async def written(log: Path) -> str:
    await until(lambda: read(log) != "")
    return read(log)


def read(log: Path) -> str:
    return log.read_text() if log.exists() else ""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (a file, and a process that is no child of ours)
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_forks_say_how_they_ended_and_write_to_their_own_logs(forks: Forks, tmp_path: Path) -> None:
    async def start(says: str) -> Forked:
        return await forks.start(
            "a-sleeper", "sleeper", {"HEADRACE_SAYS": says}, str(tmp_path / f"{says}.log")
        )

    left, failed, killed, told = [await start(says) for says in ("leave", "fail", "kill", "tell")]
    assert await ended(left) == 3
    assert await ended(failed) == 1
    assert "ValueError: on purpose" in read(tmp_path / "fail.log")
    assert await written(tmp_path / "kill.log") == "kill None\n"
    assert await written(tmp_path / "tell.log") == "tell None\n"
    killed.kill()
    assert await ended(killed) == killed.returncode == -signal.SIGKILL
    told.terminate()
    assert await ended(told) == -signal.SIGTERM
    told.terminate()


async def test_forks_end_with_their_template_and_the_next_has_a_new_one(forks: Forks, tmp_path: Path) -> None:
    log = tmp_path / "sleep.log"
    first = await forks.start("a-sleeper", "sleeper", {"HEADRACE_SAYS": "sleep"}, str(log))
    assert await written(log)
    assert read(Path(f"/proc/{first.pid}/comm")) == "a-sleeper\n"
    assert forks.template_pid is not None
    os.kill(forks.template_pid, signal.SIGKILL)
    assert await ended(first) == -signal.SIGTERM
    await until(lambda: not is_running(first.pid))
    second = await forks.start("a-sleeper", "sleeper", {"HEADRACE_SAYS": "leave"}, str(log))
    assert await ended(second) == 3


async def test_when_every_task_is_cancelled_the_forks_end(forks: Forks, tmp_path: Path) -> None:
    """As at a second Ctrl-C, which leaves no task to hear of them."""
    log = tmp_path / "sleeper.log"
    forked = await forks.start("sleeper", "sleeper", {"HEADRACE_SAYS": "stay"}, str(log))
    await written(log)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert await ended(forked) == -signal.SIGTERM
    forked.kill()  # nothing is there to kill, which is no error
    await until(lambda: not is_running(forked.pid))


async def test_a_start_that_is_cancelled_leaves_no_fork_and_the_next_one_works(
    forks: Forks, tmp_path: Path
) -> None:
    async def start(says: str) -> Forked:
        return await forks.start(
            "a-sleeper", "sleeper", {"HEADRACE_SAYS": says}, str(tmp_path / f"{says}.log")
        )

    assert await ended(await start("leave")) == 3  # the template runs
    starting = asyncio.create_task(start("sleep"))
    while not forks._starting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await ended(await start("leave")) == 3
    await until(lambda: not forks._running)


async def test_forks_have_ended_when_their_template_was_killed_and_that_is_said(
    forks: Forks, tmp_path: Path
) -> None:
    first = await forks.start("a-sleeper", "sleeper", {"HEADRACE_SAYS": "sleep"}, str(tmp_path / "sleep.log"))
    assert forks.template_pid is not None
    os.kill(forks.template_pid, signal.SIGKILL)
    assert await ended(first) == -signal.SIGTERM
    assert not _runs(first.pid)
