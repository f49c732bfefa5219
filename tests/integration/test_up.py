"""`headrace up`: everything starts, serves, and stops; a death is named; nothing stays behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli.main import main
from services.cold_start import train_first_release
from services.errors import BackendUnavailable
from services.settings import Settings, to_environment
from services.up import BROKER, SERVICES, ChildDied, Stack, check_ports, is_serving
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings

pytestmark = pytest.mark.integration


def make_settings(root: Path) -> Settings:
    """A small model on free ports, the broker's included."""
    return small_settings(f"127.0.0.1:{find_free_port()}", root)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def headrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `headrace arguments` prints on stdout; fails the test unless it exits with 0."""
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert not end.value.code, printed.err
    return printed.out


async def test_the_whole_stack_serves_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(tmp_path)
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    world = make_world(600)
    async with Stack(settings) as stack:
        assert set(stack.processes) == {*SERVICES, BROKER}
        assert not await is_serving(settings.endpoints.address("generator"), "")
        await asyncio.to_thread(
            train_first_release,
            settings,
            world.items,
            world.events,
            offsets={},
            progress=lambda stage, done, total, figures: None,
        )
        await stack.wait_ready()

        def run(*arguments: str) -> str:
            return headrace(monkeypatch, capsys, *arguments)

        await asyncio.to_thread(try_commands, run)
        await check_restarts(stack)
        pids = [child.process.pid for child in stack.processes.values()]
    assert not [pid for pid in pids if is_running(pid)]
    check_ports(settings)


async def check_restarts(stack: Stack) -> None:
    """A service that dies is started again, and that is said; one that dies over and over is given up."""
    said: asyncio.Queue[str] = asyncio.Queue()
    keeping = asyncio.ensure_future(stack.keep(said.put_nowait))
    for _ in range(2):
        stack.processes["trends"].process.send_signal(signal.SIGKILL)
        line = await asyncio.wait_for(said.get(), 10)
        assert "trends ended with code -9" in line
        assert "started again" in line
    stack.processes["trends"].process.send_signal(signal.SIGKILL)
    with pytest.raises(ChildDied, match="trends ended with code -9"):
        await asyncio.wait_for(keeping, 10)


def try_commands(run: "object") -> None:
    """Every command that speaks to running services."""
    assert callable(run)
    tracked = json.loads(run("track", "user-1", "item-1", "--action", "like", "--json"))
    assert tracked["event_id"]
    answer = json.loads(run("recommend", "user-1", "-k", "5", "--json"))
    deadline = time.monotonic() + 30
    while answer["fallback_reason"] != "FALLBACK_REASON_UNSPECIFIED" and time.monotonic() < deadline:
        time.sleep(0.2)  # until the event is in the history: before, nobody knows the user
        answer = json.loads(run("recommend", "user-1", "-k", "5", "--json"))
    assert len({item["item_id"] for item in answer["recommendations"]}) == 5
    assert "item" in run("recommend", "user-1", "-k", "5")
    [release] = json.loads(run("release", "list", "--json"))
    assert (release["release_id"], release["state"]) == (answer["release_id"], "RELEASE_STATE_LIVE")
    assert release["release_id"] in run("release", "list")
    assert json.loads(run("dlq", "list", "--json")) == []
    assert json.loads(run("dlq", "redrive", "--json")) == {"num_sent": 0}
    checks = {check["name"]: check["state"] for check in json.loads(run("doctor", "--json"))}
    assert (checks["broker"], checks["topics"], checks["release store"]) == ("ok", "ok", "ok")


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    clear = pytest.raises(BackendUnavailable, match=r"port \d+ \(ranker\).*HEADRACE_ENDPOINTS__RANKER")
    with socket.create_server(("127.0.0.1", settings.endpoints.ranker)), clear:
        check_ports(settings)


def test_kill_9_of_up_leaves_no_orphan(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    environment = os.environ | to_environment(settings) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from services.cli.main import main; main()", "up", "--embedded-broker"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as up:
        deadline = time.monotonic() + 60
        while len(children := children_of(up.pid)) < len(SERVICES) + 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(children) == len(SERVICES) + 1
        # A child that has not yet asked for the signal sees that its parent is gone.
        up.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if is_running(pid)]


def children_of(pid: int) -> list[int]:
    """The ids of a process's children."""
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]
