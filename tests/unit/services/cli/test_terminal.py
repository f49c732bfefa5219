"""What the command says while it works, where stderr is no terminal."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress

from services.cli import terminal
from services.cli.terminal import Stages


class Log:
    """Stages that write to a file, by a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._file = io.StringIO()
        console = Console(file=self._file, width=40)
        self.stages = Stages(Progress(console=console, disable=True, get_time=lambda: self.now_s))

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: log.now_s))
    return log


def test_a_stage_is_a_line_every_ten_seconds_and_one_at_its_end(log: Log) -> None:
    for second in range(25):
        log.now_s = float(second)
        log.stages("read", 2 * second, 48)
    log.stages("read", 48, 48)
    log.stages("read", 48, 48, {"loss": 1.0})
    assert log.lines == ["read 0/48", "read 20/48 2.0/s", "read 40/48 2.0/s", "read 48/48 2.0/s"]


def test_a_stage_of_less_than_a_second_has_no_rate(log: Log) -> None:
    for step in range(4):
        log.now_s = step / 1_000
        log.stages("read", 100 * step, 300)
    log.stages("wait", 0, 0)
    assert log.lines == ["read 0/300", "read 300/300", "wait 0/0"]


def test_a_long_line_is_not_broken(log: Log) -> None:
    log.stages.say("word " * 20)
    assert log.lines == ["word " * 20]


@pytest.mark.parametrize("width", [80, 110, 130])
def test_a_bar_keeps_its_bar_count_and_time_left_beside_figures(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    now_s = [0.0]
    bars = Progress(*terminal._bar_columns(width), console=console, get_time=lambda: now_s[0])
    stages = Stages(bars)
    stages("learning to recommend", 0, 63_000)
    now_s[0] = 20.0
    stages("learning to recommend", 1_500, 63_000, {"code_loss": 1.0, "recall@10": 0.0812})
    now_s[0] = 40.0
    figures = {"code_loss": 1.0, "popularity_recall@10": 0.0604, "recall@10": 0.0812}
    stages("learning to recommend", 31_500, 63_000, figures)
    console.print(bars.make_tasks_table(bars.tasks))
    line = file.getvalue().splitlines()[-1]
    assert len(line) <= width
    for part in ("learning to recommend", "31,500/63,000", "0:00:", "Recall@10 0.0812", "━━"):
        assert part in line
    assert ("Recall@10 0.0812, popularity 0.0604" in line) == (width >= 110)
    assert "code_loss" not in line


def test_a_stage_that_ends_early_is_at_its_end() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    bars = Progress(*terminal._bar_columns(80), console=console)
    stages = Stages(bars)
    stages("learning to recommend", 220, 440)
    assert not bars.tasks[0].finished
    stages("learning to recommend", 220, 220)
    assert bars.tasks[0].finished
    assert bars.tasks[0].description == "learning to recommend (ended early)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119.2, "119 s"), (120, "2 min 0 s"), (754.6, "12 min 35 s")]
)
def test_a_duration_is_in_minutes_from_two_on(seconds: float, text: str) -> None:
    assert terminal.duration_text(seconds) == text


def test_progress_for_programs_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.json_lines() as report:
        report("learning to rank", 1, 20, {"recall@10": 0.5})
        report("reading", 2, 3)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"stage": "learning to rank", "done": 1, "total": 20, "figures": {"recall@10": 0.5}}
    assert lines[1]["figures"] == {}
