"""How the command talks to a person or a program: tables, JSON, progress with rates.

Data goes to stdout, progress and hints to stderr. Rich drops the colours where there is no terminal.
"""

import io
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from models.progress import Progress as Report

ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Names of your columns: user_id=uid,item_id=sku,timestamp=ts."),
]
KeepTimesOption = Annotated[
    bool, typer.Option("--keep-times", help="Take the times of the data as they are, not moved to end now.")
]
UnmatchedOption = Annotated[
    bool,
    typer.Option("--allow-unmatched", help="Take a folder in which most events are on items without a line."),
]

if not os.environ.get("COLUMNS", "1").strip("0"):
    del os.environ["COLUMNS"]  # a terminal of no width would show nothing
# Text is data: brackets in a title or an id are not markup.
out = Console(markup=False)
err = Console(stderr=True, markup=False)
_LINE_INTERVAL_S = 10.0
_MIN_RATED_S = 1.0
# A terminal of so many columns has room for a rate and popularity beside a bar, or for everything.
_WIDE, _VERY_WIDE = 110, 130
_METRIC_NAMES = {
    f"{key}@{k}": f"{name}@{k}" for key, name in (("recall", "Recall"), ("ndcg", "NDCG")) for k in (5, 10)
}
# The figures that are shown beside a bar, where there is room; the others are for programs.
_FIGURE_NAMES = {"recall@10": "Recall@10", "popularity_recall@10": "popularity"}


class CountColumn(ProgressColumn):
    """Finished steps and all of them, such as 1,500/63,000; the finished alone where nobody knows all."""

    def render(self, task: ProgressTask) -> Text:
        done = f"{int(task.completed):,}"
        return Text(done if task.total is None else f"{done}/{int(task.total):,}", style="green")


class RateColumn(ProgressColumn):
    """Finished steps per second."""

    def render(self, task: ProgressTask) -> Text:
        return Text(_rate(task), style="cyan")


def _rate(task: ProgressTask) -> str:
    """Steps per second; empty before there is a second to count them in."""
    seconds = task.elapsed if task.finished_time is None else task.finished_time
    if not task.speed or (seconds or 0.0) < _MIN_RATED_S:
        return ""
    return f"{task.speed:,.0f}/s" if task.speed >= 10 else f"{task.speed:,.1f}/s"


class Stages:
    """One progress bar for each named stage; called as `progress(stage, num_done, num_total[, figures])`.

    A stage that ends before all is done reports what it did as the whole. Where stderr is no terminal, a
    bar becomes a plain line every ten seconds and one at the end, however often the end is reported.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task_ids: dict[str, TaskID] = {}
        self._next_line_s: dict[str, float] = {}
        self._ended_at: dict[str, int] = {}
        self._num_total: dict[str, int] = {}

    def __call__(
        self, stage: str, num_done: int, num_total: int, figures: Mapping[str, float] | None = None
    ) -> None:
        if stage not in self._task_ids:
            self._task_ids[stage] = self._bars.add_task(stage, total=num_total or None, figures="")
        task_id = self._task_ids[stage]
        total = num_total or None
        first_total = self._num_total.setdefault(stage, num_total)
        if num_done == num_total < first_total:
            self._bars.update(task_id, description=f"{stage} (ended early)")
        is_wide = not self._bars.console.is_terminal or self._bars.console.width >= _WIDE
        text = _figures_text(figures or {}, None if is_wide else 1)
        self._bars.update(task_id, completed=num_done, total=total, figures=text)
        if not self._bars.console.is_terminal:
            self._line(stage, task_id, num_done, num_total)

    def _line(self, stage: str, task_id: TaskID, num_done: int, num_total: int) -> None:
        now_s = time.monotonic()
        if num_done == num_total:
            if self._ended_at.get(stage) == num_total:
                return
            self._ended_at[stage] = num_total
        elif now_s < self._next_line_s.get(stage, now_s):
            return
        self._next_line_s[stage] = now_s + _LINE_INTERVAL_S
        task = next(task for task in self._bars.tasks if task.id == task_id)
        line = f"{task.description} {num_done:,}/{num_total:,} {_rate(task)}".rstrip()
        self.say(f"{line} {task.fields['figures']}".rstrip())

    def stop(self) -> None:
        """Ends the bars where they stand."""
        self._bars.stop()

    def say(self, line: str) -> None:
        """A line that stays above the bars."""
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _bar_columns(width: int) -> list[ProgressColumn]:
    """Bar, count and time left are whole at 80 columns; a rate, and the time used, need more."""
    stage = TextColumn("{task.description}", table_column=Column(no_wrap=True))
    figures = TextColumn("{task.fields[figures]}", style="dim", table_column=Column(no_wrap=True))
    needed = [
        SpinnerColumn(),
        stage,
        BarColumn(bar_width=None),
        CountColumn(),
        TimeRemainingColumn(),
        figures,
    ]
    if width < _WIDE:
        return needed
    elapsed = [TimeElapsedColumn()] if width >= _VERY_WIDE else []
    return [*needed[:4], RateColumn(), *elapsed, *needed[4:]]


def _figures_text(figures: Mapping[str, float], num_shown: int | None) -> str:
    """The first `num_shown` of those figures that say something to people, by plain names."""
    shown = [f"{_FIGURE_NAMES[key]} {figures[key]:.4f}" for key in _FIGURE_NAMES if key in figures]
    return ", ".join(shown[:num_shown])


@contextmanager
def progress_bars() -> Iterator[Stages]:
    """Progress on stderr, bars on a terminal and lines elsewhere; use the result as a callback."""
    with Progress(
        *_bar_columns(err.width),
        console=err,
        disable=not err.is_terminal,
    ) as bars:
        yield Stages(bars)


@contextmanager
def json_lines() -> "Iterator[Report]":
    """Progress for a program that draws it: a line of JSON on stdout for each report."""

    def say(stage: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
        print_json_line({"stage": stage, "done": done, "total": total, "figures": dict(figures or {})})

    yield say


def print_json_line(data: Any) -> None:
    """One JSON document on one line of stdout, at once."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def take_any_text() -> None:
    """Characters that a terminal's encoding lacks are shown escaped, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shown(text: str) -> str:
    """The text with its control characters escaped, so that data cannot move the cursor."""
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode()
        for c in text
    )


def warn(line: str) -> None:
    """A line on stderr that stands out on a terminal."""
    err.print(Text(shown(line), style="yellow"), soft_wrap=True)


def note(line: str) -> None:
    """A line on stderr, for people."""
    err.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    out.out(json.dumps(data, indent=2, ensure_ascii=False), highlight=False)


def message_dict(message: Message) -> dict[str, Any]:
    """The protobuf JSON mapping with field names as in the .proto, zero values included."""
    from google.protobuf.json_format import MessageToDict

    data: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return data


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numbers: Sequence[str] = (),
    ids: Sequence[str] = (),
) -> None:
    """A table on stdout; the columns in `numbers` are right-aligned, those in `ids` never broken.

    Text is data: only a cell that is a `Text` has a style; brackets in others are brackets.
    """
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in ids)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(str(cell))) for cell in row))
    out.print(table, highlight=False)


def print_metrics(title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """One row for each group, named "system", and one column for each metric."""
    names = sorted({name for group in groups.values() for name in group})
    rows = [
        [group, *(f"{metrics[name]:.4f}" if name in metrics else "-" for name in names)]
        for group, metrics in groups.items()
    ]
    shown = [_METRIC_NAMES.get(name, name) for name in names]
    print_table(title, ["system", *shown], rows, numbers=shown)


def time_text(time_ms: int) -> str:
    """UTC to the second, or a dash for 0; the number itself where no calendar has it."""
    try:
        moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S") if time_ms else "-"


def duration_text(seconds: float) -> str:
    """`48 s`, or from two minutes on `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def enum_word(name: str, prefix: str) -> str:
    """`RELEASE_STATE_LIVE` with prefix `RELEASE_STATE_` is `live`."""
    return name.removeprefix(prefix).lower()
