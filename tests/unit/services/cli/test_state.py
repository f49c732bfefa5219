"""`headrace state`: one clear line where there is nothing, and what is there where there is something."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.main import main
from services.cli.state import StateFacts, bytes_on_disk, nothing_there, rows_of
from services.cli.up import pid_file, running_up
from tests.conftest import find_free_port

FACTS = StateFacts(
    root="/srv/state",
    answered_by="",
    exists=True,
    num_bytes=3 * 1024**2,
    up_pid=None,
    releases_url="/srv/state/releases",
    live_release_id="",
    live_known_by="",
    checkpoint=None,
    staged_releases=[],
    num_users=None,
    history_problem="",
    bootstrap_servers="127.0.0.1:7492",
    broker_answers=False,
    broker_path=None,
    broker_bytes=0,
    learner="",
    learner_problem="",
    stalled="",
)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which no service and no broker answers."""
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY", "LEARNER"):
        monkeypatch.setenv(f"HEADRACE_ENDPOINTS__{name}", str(find_free_port()))
    monkeypatch.setenv("HEADRACE_BROKER__BOOTSTRAP_SERVERS", f"127.0.0.1:{find_free_port()}")
    return tmp_path


def run_state(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `headrace state`."""
    monkeypatch.setattr(sys, "argv", ["headrace", "state", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_nothing_there_is_one_line_with_the_next_command(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_state(monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"no state folder {alone / '.headrace'}: `headrace up` makes one" in captured.err
    assert run_state(monkeypatch, "--json") == 1
    assert json.loads(capsys.readouterr().out)["exists"] is False
    assert list(alone.iterdir()) == []


def test_a_folder_of_ones_own_is_shown_and_left_as_it_is(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = alone / ".headrace"
    broken = root / "learner" / "000000000007"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{}")
    (root / "broker").mkdir()
    (root / "broker" / "data").write_bytes(b"x" * 10_000)
    before = sorted(root.rglob("*"))
    assert run_state(monkeypatch, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["root"], found["answered_by"], found["up_pid"]) == (str(root), "", None)
    assert found["checkpoint"]["path"] == str(broken)
    assert "format" in found["checkpoint"]["problem"]
    assert found["broker_path"] == str(root / "broker")
    assert found["num_bytes"] >= found["broker_bytes"] >= 10_000
    assert run_state(monkeypatch) == 0
    assert "cannot be read" in capsys.readouterr().out
    assert sorted(root.rglob("*")) == before


def test_an_up_at_work_is_known_by_its_lock(tmp_path: Path) -> None:
    assert running_up(tmp_path) is None
    with pid_file(tmp_path / "up.pid"):
        assert running_up(tmp_path) == os.getpid()
    (tmp_path / "up.pid").write_text("1\n")
    assert running_up(tmp_path) is None


def test_who_told_and_who_is_silent_is_said() -> None:
    rows = dict(rows_of(FACTS))
    assert rows["state"] == "/srv/state (this folder's own; no service answers)"
    assert rows["live release"] == "unknown (the broker does not answer)"
    assert rows["checkpoint"] == rows["catalogue"] == rows["histories"] == "none"
    told = replace(
        FACTS,
        answered_by="the gateway at 127.0.0.1:7400",
        broker_answers=True,
        live_release_id="r1",
        live_known_by="releases",
        num_users=1_200,
        learner="learning",
        up_pid=17,
    )
    rows = dict(rows_of(told))
    assert rows["state"] == "/srv/state (told by the gateway at 127.0.0.1:7400)"
    assert (rows["live release"], rows["histories"]) == ("r1", "of 1,200 users")
    assert rows["up"] == "`headrace up` runs here, pid 17"
    assert rows["learner"] == "learning"
    assert "stream" not in rows
    stalled = replace(told, learner_problem="a reason", stalled="24 records wait")
    assert dict(rows_of(stalled))["stream"] == "24 records wait"
    assert dict(rows_of(stalled))["learner"] == "learning: a reason"
    by_checkpoint = replace(FACTS, live_release_id="r1", live_known_by="checkpoint")
    assert dict(rows_of(by_checkpoint))["live release"].startswith("r1 (by the checkpoint")
    assert not nothing_there(told)
    assert nothing_there(replace(FACTS, exists=False))


def test_services_that_answer_without_an_up_are_named() -> None:
    assert dict(rows_of(FACTS))["up"] == "`headrace up` does not run here"
    demo = replace(FACTS, answered_by="the gateway at 127.0.0.1:7400")
    assert "the services that answer run without it" in dict(rows_of(demo))["up"]


def test_holes_take_nothing(tmp_path: Path) -> None:
    assert bytes_on_disk(tmp_path / "nowhere") == 0
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert bytes_on_disk(tmp_path) < 1 << 20
