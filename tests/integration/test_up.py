"""`headrace up`: everything starts, serves, and stops; a death is named; nothing stays behind."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from protos.headrace.v1 import recommend_pb2, recommend_pb2_grpc
from protos.headrace.v1.events_pb2 import Action, Event
from services.cli.main import main
from services.cli.up import pid_file, wants_embedded_broker
from services.errors import BackendUnavailable
from services.learner.cold_start.train import train_first_release
from services.settings import EndpointSettings, Settings, to_environment
from services.stack.children import BROKER, processes_of
from services.stack.embedded_broker import EmbeddedBroker
from services.stack.ports import check_ports, wait_for_orphans
from services.stack.supervisor import Stack, is_serving
from streaming.clients.follow import read_to_end
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.messages.topics import INTERACTIONS, ITEMS
from tests.conftest import find_free_port
from tests.integration.learner_world import make_world, small_settings
from tests.integration.serving import until

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
        assert set(stack.processes) == {*processes_of(settings.layout), BROKER}
        assert not await is_serving(settings.endpoints.address("generator"), "")

        def train(**changes: int) -> str:
            def ignore(*_: object) -> None: ...

            changed = settings.model_copy(update={"model": replace(settings.model, **changes)})
            first = train_first_release(changed, world.items, world.events, offsets={}, progress=ignore)
            return first.release.release_id

        first_id = await asyncio.to_thread(train)
        await stack.wait_ready()

        def run(*arguments: str) -> str:
            return headrace(monkeypatch, capsys, *arguments)

        await asyncio.to_thread(try_commands, run)
        second_id = await asyncio.to_thread(partial(train, d_model=2 * settings.model.d_model))
        await asyncio.to_thread(go_back, run, second_id, first_id)
        await check_restarts(stack)
        pids = [child.process.pid for child in stack.processes.values()]
    assert not [pid for pid in pids if is_running(pid)]
    check_ports(settings)


def go_back(run: "object", second_id: str, first_id: str) -> None:
    """From a second training to the release that was live before it, though that is of another width."""
    assert callable(run)

    def state() -> dict[str, Any]:
        return dict(json.loads(run("state", "--json")))

    deadline = time.monotonic() + 30
    while state()["checkpoint"]["live_release_id"] != second_id:  # the learner has taken it over then
        assert time.monotonic() < deadline
        time.sleep(0.2)
    back = json.loads(run("release", "rollback", "--json"))
    assert (back["release_id"], back["state"]) == (first_id, "RELEASE_STATE_LIVE")
    deadline = time.monotonic() + 30
    while json.loads(run("recommend", "user-1", "--json"))["release_id"] != first_id:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while "another codebook or architecture than the learner's" not in (found := state())["learner_problem"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert (found["learner"], found["live_release_id"]) == ("learning", first_id)


async def check_restarts(stack: Stack) -> None:
    """A service that dies over and over takes nobody with it: it is said, and it is started again."""
    said: asyncio.Queue[str] = asyncio.Queue()
    stack._say = said.put_nowait
    for pause_s in (0.5, 1, 2):
        stack.processes["trends"].process.send_signal(signal.SIGKILL)
        line = await asyncio.wait_for(said.get(), 20)
        assert "trends ended with code -9" in line
        assert f"started again in {pause_s:g} s" in line
        assert stack.degraded == ["trends"]
        assert await is_serving(stack.settings.endpoints.address("gateway"), "")

        async def is_whole() -> bool:
            return not stack.degraded

        await until(is_whole)


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
    # nobody but the training announced an item, and no event of its is in the topic
    stranger = json.loads(run("recommend", "nobody", "-k", "5", "--json"))["recommendations"]
    assert len({item["title"] for item in stranger if item["title"].startswith("thing ")}) == 5
    [release] = json.loads(run("release", "list", "--json"))
    assert (release["release_id"], release["state"]) == (answer["release_id"], "RELEASE_STATE_LIVE")
    assert release["release_id"] in run("release", "list")
    assert json.loads(run("dlq", "list", "--json")) == []
    assert json.loads(run("dlq", "redrive", "--json")) == {"num_sent": 0}
    checks = {check["name"]: check["state"] for check in json.loads(run("doctor", "--json"))}
    assert (checks["broker"], checks["topics"], checks["release store"]) == ("ok", "ok", "ok")


def test_one_port_for_two_is_one_clear_line() -> None:
    settings = Settings(endpoints=EndpointSettings(gateway=7401))
    with pytest.raises(BackendUnavailable, match=r"port 7401 is that of .* set HEADRACE_ENDPOINTS__"):
        check_ports(settings)


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    clear = pytest.raises(BackendUnavailable, match=r"port \d+ \(ranker\).*HEADRACE_ENDPOINTS__RANKER")
    with socket.create_server(("127.0.0.1", settings.endpoints.ranker)), clear:
        check_ports(settings)


def test_kill_9_of_up_leaves_no_orphan(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    environment = os.environ | to_environment(settings) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from services.cli.main import main; main()", "up", "--embedded-broker"]
    num_children = len(processes_of(settings.layout)) + 2  # the broker, and what they are forked from
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as up:
        deadline = time.monotonic() + 60
        while len(children := descendants_of(up.pid)) < num_children and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(children) == num_children
        # A child that has not yet asked for the signal sees that its parent is gone.
        up.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if is_running(pid)]


def test_the_ports_of_a_killed_up_are_waited_for(tmp_path: Path) -> None:
    """Its services end by themselves, if not at once."""
    settings = make_settings(tmp_path)
    orphan = socket.create_server(("127.0.0.1", settings.endpoints.ranker))
    threading.Timer(1.0, orphan.close).start()
    wait_for_orphans(settings, embedded_broker=True)
    check_ports(settings)
    path = tmp_path / "up.pid"
    path.write_text("4711\n")
    with pid_file(path) as killed_pid:
        assert killed_pid == "4711"
    with pid_file(path) as killed_pid:
        assert not killed_pid


def test_a_port_that_is_none_is_one_clear_line() -> None:
    settings = Settings(endpoints=EndpointSettings(base_port=70_000))
    with pytest.raises(BackendUnavailable, match=r"0 to 65535.*HEADRACE_ENDPOINTS__BASE_PORT"):
        check_ports(settings)


@pytest.mark.case("`headrace up` twice in one folder")
def test_a_second_up_in_a_folder_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "up.pid"
    monkeypatch.setenv("HEADRACE_STORE__ROOT", str(tmp_path))
    with pid_file(path):
        monkeypatch.setattr(sys, "argv", ["headrace", "up"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code
        assert f"headrace is already running here (pid {os.getpid()})" in " ".join(
            capsys.readouterr().err.split()
        )
        assert path.read_text().strip() == str(os.getpid())
    assert not path.exists()
    with pid_file(path):
        pass


def test_one_setting_moves_every_port() -> None:
    usual, moved = Settings(), Settings(endpoints=EndpointSettings(base_port=9_000, learner=5_000))
    assert moved.endpoints.port("gateway") == 9_000
    assert moved.endpoints.port("console") == usual.endpoints.port("console") + 1_600
    assert moved.endpoints.port("learner") == 5_000
    assert moved.broker.bootstrap_servers == "127.0.0.1:9092"
    assert wants_embedded_broker(moved)
    children = Settings(**{"endpoints": moved.endpoints, "broker": moved.broker})
    assert children.broker == moved.broker


@pytest.mark.case("Kafka kept, state folder lost, `up`")
async def test_a_lost_state_folder_leaves_serving_up(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "state")
    world = make_world(300)
    with EmbeddedBroker(tmp_path / "broker", settings.broker.bootstrap_servers) as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        with Producer(broker.bootstrap) as producer:
            for item in world.items:
                producer.send(ITEMS, item.item_id, item)
            for event in world.events:
                producer.send(INTERACTIONS, event.user_id, event)
            producer.flush()
        await asyncio.to_thread(
            train_first_release,
            settings,
            world.items,
            world.events,
            offsets={},
            progress=lambda *report: None,
        )
        shutil.rmtree(tmp_path / "state")
        said: list[str] = []
        stack = Stack(settings, embedded_broker=False)
        try:
            await stack.start(say=said.append)
            assert not stack.degraded
            async with grpc.aio.insecure_channel(settings.endpoints.address("gateway")) as channel:
                stub = recommend_pb2_grpc.RecommenderServiceStub(channel)
                answer = await stub.Recommend(recommend_pb2.RecommendRequest(user_id="new", k=5), timeout=10)
            assert len(answer.recommendations) == 5
        finally:
            await stack.stop()
    assert any("run `headrace train --from-topic`" in line for line in said)


@pytest.mark.case("state folder on a full disk, 20 Recommends and Tracks")
async def test_a_full_disk_fails_no_request(tmp_path: Path) -> None:
    """The gateway's log goes to a device that is always full."""
    settings = make_settings(tmp_path)
    with EmbeddedBroker(tmp_path / "broker", settings.broker.bootstrap_servers) as broker:
        create_topics(broker.bootstrap, num_partitions=2, replication_factor=1)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$0" -m services.gateway >/dev/full 2>&1', sys.executable),
            env=os.environ | to_environment(settings),
        )
        try:
            async with grpc.aio.insecure_channel(settings.endpoints.address("gateway")) as channel:
                stub = recommend_pb2_grpc.RecommenderServiceStub(channel)
                for n in range(20):
                    asked = recommend_pb2.RecommendRequest(user_id="u", k=5)
                    await stub.Recommend(asked, timeout=30, wait_for_ready=True)
                    event = Event(user_id="u", item_id=f"i{n}", action=Action.ACTION_CLICK)
                    await stub.Track(recommend_pb2.TrackRequest(event=event), timeout=30)
            page = f"http://127.0.0.1:{settings.endpoints.metrics_port('gateway')}/metrics"
            with await asyncio.to_thread(urllib.request.urlopen, page) as metrics:
                text = metrics.read().decode()
            assert "headrace_log_lines_lost_total 0.0" not in text
            assert "headrace_log_lines_lost_total" in text
        finally:
            process.terminate()
            await process.wait()
        records = await asyncio.to_thread(read_to_end, broker.bootstrap, INTERACTIONS)
        assert len(records) == 20


def descendants_of(pid: int) -> list[int]:
    """The ids of a process's children, and of theirs."""
    children = [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]
    return children + [one for child in children for one in descendants_of(child)]
