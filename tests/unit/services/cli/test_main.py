"""The command: quick help, one clear line for a mistake, JSON where it prints data."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from models.errors import NonFiniteLoss
from services.cli import start, terminal
from services.cli.items import UnreadableItems, read_items
from services.cli.main import error_line, main
from services.errors import BackendUnavailable, NotReady
from services.releases.store import open_release_store
from services.settings import BrokerSettings, Settings, StoreSettings, load_settings, to_environment
from streaming.errors import BrokerUnavailable
from tests.conftest import find_free_port


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `headrace arguments`."""
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_imports_nothing_heavy() -> None:
    check = (
        "import sys\nfrom services.cli.main import main\nsys.argv = ['headrace', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'kafka', 'aiokafka', 'grpc', 'faiss', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "up",
        "demo",
        "train",
        "evaluate",
        "recommend",
        "track",
        "replay",
        "items",
        "release",
        "dlq",
        "state",
        "settings",
        "doctor",
    ):
        assert command in done.stdout


def test_nobody_at_the_gateway_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_ENDPOINTS__GATEWAY", str(find_free_port()))
    assert run(monkeypatch, "recommend", "anna") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not answer" in captured.err
    assert "Traceback" not in captured.err


def test_a_wrong_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_MODLE__D_MODEL", "64")
    assert run(monkeypatch, "track", "anna", "item-1") == 1
    assert "HEADRACE_MODLE__D_MODEL: no such setting" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("track", "anna", "item-1", "--action", "stare"),
        ("recommend", "anna", "-k", "0"),
        ("replay", "--data", "/nowhere"),
        ("dlq", "list", "no-topic"),
        ("replay", "--data", __file__),
        ("replay", "--data", ".", "--from", "0.5", "--until", "0.5"),
        ("replay", "--data", ".", "--rate", "nan"),
        ("train", "--data", ".", "--from-topic"),
        ("train", "--data", ".", "--max-minutes", "-1"),
        ("train", "--data", ".", "--until", "nan"),
        ("train", "--data", ".", "--json", "a-folder"),
        ("evaluate", "--data", ".", "--protocol", "mine"),
        ("demo", "--train-minutes", "nan"),
        ("recommend", "anna", "-k", "99999999999"),
        ("recommend", "an\udcffna"),
        ("track", "anna", "item-1", "--time-ms", "99999999999999999999"),
        ("track", "anna", "item-1", "--value", "dear"),
        ("dlq", "list", "--limit", "0"),
        ("items", "import", "."),
        ("release", "rollback", "--reason", "\udcff"),
        ("release", "diff", "a"),
        ("up", "now"),
        ("no-command",),
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "--data", "FOLDER", "--from", "0"),
        ("train", "--data", "FOLDER"),
        ("train", "--from-topic"),
        ("release", "list"),
        ("release", "diff", "a", "b"),
        ("dlq", "list"),
        ("dlq", "redrive"),
    ],
)
def test_without_a_broker_each_command_says_at_once_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv("HEADRACE_BROKER__BOOTSTRAP_SERVERS", f"127.0.0.1:{find_free_port()}")
    monkeypatch.setenv("HEADRACE_ENDPOINTS__GATEWAY", str(find_free_port()))
    monkeypatch.setenv("HEADRACE_ENDPOINTS__LEARNER", str(find_free_port()))
    monkeypatch.setenv("HEADRACE_STORE__ROOT", str(tmp_path / "state"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1760000000\n")
    (folder / "items.csv").write_text("item_id,title\ni,thing\n")
    began_s = time.monotonic()
    assert run(monkeypatch, *(str(folder) if one == "FOLDER" else one for one in arguments)) == 1
    assert time.monotonic() - began_s < 8.0
    [line] = capsys.readouterr().err.splitlines()
    assert "no broker" in line
    assert "`headrace up`" in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"item_id,title\n", b"\xff\xfe", b"[1]\n", b'{"item_id": [1]}\n']
)
def test_a_file_of_no_items_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    assert run(monkeypatch, "items", "import", str(path)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error {path}")


def test_errors_of_each_package_have_a_line_and_bugs_do_not() -> None:
    assert error_line(NotReady("no release")) == "no release"
    assert str(error_line(BrokerUnavailable("no broker"))).startswith("no broker; is `headrace up` running")
    assert error_line(NonFiniteLoss("not finite")) == "not finite"
    assert error_line(KeyError("a bug")) is None


def test_items_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"item_id": 7, "title": "A", "brand": null, "asin": "x"}\n\n{"itemId": "b", "titel": "B"}\n'
    )
    unknown = Counter[str]()
    assert [(item.item_id, item.title) for item in read_items(path, unknown)] == [("7", "A"), ("b", "")]
    assert unknown == {"asin": 1, "titel": 1}
    path.write_text('{"item_id": "a"}\n{"title": "no id"}\n')
    with pytest.raises(UnreadableItems, match="line 2: item_id must not be empty"):
        list(read_items(path, Counter()))


def test_text_for_people_moves_no_cursor_and_any_time_is_shown() -> None:
    assert terminal.shown("Mug [/sale] é🙂\nnext") == "Mug [/sale] é🙂\nnext"
    assert terminal.shown("a\x1b[2J\x00\r") == "a\\x1b[2J\\x00\\r"
    assert [terminal.time_text(time_ms) for time_ms in (0, -(2**62))] == ["-", f"{-(2**62)} ms"]
    assert terminal.time_text(1_700_000_000_000) == "2023-11-14 22:13:20"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(130)])
def test_ctrl_c_is_one_word(
    end: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise end

    monkeypatch.setattr("services.cli.main.main", interrupted)
    with pytest.raises(SystemExit) as caught:
        start.main()
    assert (caught.value.code, capsys.readouterr().err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("url", "problem"), [("foo://bar", "cannot be opened"), ("memory://x", "is the memory of one process")]
)
def test_a_release_store_that_can_never_work_is_refused(url: str, problem: str) -> None:
    with pytest.raises(
        BackendUnavailable, match=f"the release store {url} {problem}.*HEADRACE_STORE__RELEASES"
    ):
        open_release_store(url)


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"name": "[red]é[/red]", "n": 1})
    assert json.loads(capsys.readouterr().out) == {"name": "[red]é[/red]", "n": 1}


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        broker=BrokerSettings(bootstrap_servers="127.0.0.1:9"), store=StoreSettings(root=Path("/tmp/x"))
    )
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
