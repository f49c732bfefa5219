"""What services say of themselves reaches the person at the command: a stalled stream, another broker."""

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc, state_pb2, state_pb2_grpc
from services.cli.doctor import run_checks
from services.cli.main import main
from services.cli.replay import stalled_stream
from services.cli.state import look, rows_of
from services.rpc.state import find_state
from services.settings import BrokerSettings, EndpointSettings, Settings, StoreSettings, to_environment
from tests.conftest import find_free_port, find_port_pair

pytestmark = pytest.mark.integration

STALLED = "24 records of interactions/0 wait for an open transaction"


class StalledLearner(learner_pb2_grpc.LearnerServiceServicer):
    """Learns, as far as it can."""

    def Status(self, request: learner_pb2.StatusRequest, context: Any) -> learner_pb2.StatusResponse:
        """24 records behind."""
        return learner_pb2.StatusResponse(state="learning", lag_records=24, stalled=STALLED)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Nobody listens there."""
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "projector", "trends", "console")
    return Settings(
        broker=BrokerSettings(bootstrap_servers=f"127.0.0.1:{find_free_port()}"),
        store=StoreSettings(root=tmp_path),
        endpoints=EndpointSettings(**{name: find_port_pair() for name in names}, metrics_offset=1),
    )


@pytest.fixture
def learner(settings: Settings) -> Iterator[None]:
    """A learner whose stream is stalled."""
    server = grpc.server(ThreadPoolExecutor(1))
    learner_pb2_grpc.add_LearnerServiceServicer_to_server(StalledLearner(), server)
    server.add_insecure_port(settings.endpoints.address("learner"))
    server.start()
    yield
    server.stop(None).wait()


@pytest.mark.usefixtures("learner")
def test_state_doctor_and_replay_say_what_is_stalled(settings: Settings) -> None:
    assert dict(rows_of(look(find_state(settings))))["stream"] == STALLED
    [check] = [one for one in run_checks(settings) if one.name == "learner"]
    assert (check.state, check.detail) == ("warn", f"learning; {STALLED}")
    assert stalled_stream(settings) == STALLED


def test_without_a_learner_they_say_nothing_of_it(settings: Settings) -> None:
    assert "stream" not in dict(rows_of(look(find_state(settings))))
    [check] = [one for one in run_checks(settings) if one.name == "learner"]
    assert check.state == "warn"
    assert check.detail.startswith("does not answer")
    assert stalled_stream(settings) == ""


class FarService(state_pb2_grpc.StateServiceServicer):
    """Keeps its state in `root`, and uses another broker than the settings name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def GetState(self, request: state_pb2.GetStateRequest, context: Any) -> state_pb2.GetStateResponse:
        """Where."""
        return state_pb2.GetStateResponse(
            service="gateway",
            host=socket.gethostname(),
            root=str(self._root),
            releases_url=str(self._root / "releases"),
            bootstrap_servers="127.0.0.1:1",
        )


@pytest.mark.case("a second shell that names another broker than the service's")
@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "--data", "."),
        ("train", "--from-topic"),
        ("release", "list"),
        ("dlq", "list"),
        ("dlq", "redrive"),
        ("state",),
    ],
    ids=" ".join,
)
def test_no_command_goes_to_another_broker_than_the_services(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    state_pb2_grpc.add_StateServiceServicer_to_server(FarService(tmp_path), server)
    server.add_insecure_port(settings.endpoints.address("gateway"))
    server.start()
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        server.stop(None).wait()
    assert end.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "uses the broker at 127.0.0.1:1, these settings name" in captured.err
    assert list(tmp_path.iterdir()) == []
