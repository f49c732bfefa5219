"""The three model services as processes: they come up, log JSON, and end with 0 on SIGTERM."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.releases.publisher import ReleasePublisher
from services.rpc.clients import channel
from services.settings import Settings
from tests.factories import make_release
from tests.integration.serving import make_settings, own_broker, ready

pytestmark = pytest.mark.integration

NAMES = ("tokenizer", "generator", "ranker")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with own_broker(tmp_path / "broker") as bootstrap:
        yield make_settings(bootstrap, tmp_path)


def environment(settings: Settings) -> dict[str, str]:
    ports = {f"HEADRACE_ENDPOINTS__{name.upper()}": str(settings.endpoints.port(name)) for name in NAMES}
    return {
        **os.environ,
        **ports,
        "HEADRACE_ENDPOINTS__METRICS_OFFSET": "1",
        "HEADRACE_BROKER__BOOTSTRAP_SERVERS": settings.broker.bootstrap_servers,
        "HEADRACE_STORE__ROOT": str(settings.store.root),
    }


async def start(name: str, env: dict[str, str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{name}", env=env, stdout=pipe, stderr=pipe
    )


async def test_services_run_and_stop(settings: Settings) -> None:
    await asyncio.to_thread(ReleasePublisher(settings).publish, make_release("p-1"), RELEASE_STATE_LIVE)
    processes = [await start(name, environment(settings)) for name in NAMES]
    try:
        for name in NAMES:
            async with channel(settings.endpoints.address(name)) as connection:
                await ready(connection)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        outputs = [await process.communicate() for process in processes]
    for name, process, (stdout, stderr) in zip(NAMES, processes, outputs, strict=True):
        assert (process.returncode, stderr.decode()) == (0, "")
        lines = [json.loads(line) for line in stdout.decode().splitlines()]
        assert {line["service"] for line in lines} == {name}
        assert lines[-1]["event"] == "stopped"
        assert [line["release_id"] for line in lines if line["event"] == "release_live"] == ["p-1"]


async def test_a_wrong_setting_is_one_line(settings: Settings) -> None:
    process = await start("generator", {**environment(settings), "HEADRACE_SEARCH__BEAM": "0"})
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    assert len(stderr.decode().splitlines()) == 1
    assert "HEADRACE_SEARCH" in stderr.decode()
