"""`pytest --cases`: only the tests marked `case("name")`, and at the end one table with the outcome of each.

A pytest plugin, loaded by the `-p` of `pyproject.toml`. A case's figure is what its test hands to
`record_property("figure", ...)`.
"""

from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

_OUTCOME_STYLE = {"right": "green", "WRONG": "bold red", "not run": "yellow"}


@dataclass
class Case:
    """One row of the table; several tests may prove one case."""

    outcome: str = "right"
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """Takes in the set-up, call or tear-down of one of its tests."""
        self.seconds += report.duration
        if report.failed:
            self.outcome = "WRONG"
        elif report.skipped and self.outcome == "right":
            self.outcome = "not run"
        if report.when == "call":
            self.figures += [str(value) for name, value in report.user_properties if name == "figure"]


class CasesTable:
    """Chooses the marked tests, listens to their reports and prints the table."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._cases: dict[str, Case] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keeps the cases."""
        chosen = []
        for item in items:
            mark = item.get_closest_marker("case")
            if mark is not None:
                self._names[item.nodeid] = str(mark.args[0])
                chosen.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._names])
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        self._cases.setdefault(self._names[report.nodeid], Case()).add(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the table."""
        table = Table(title=f"{len(self._cases)} cases", title_justify="left")
        table.add_column("case", overflow="fold")
        table.add_column("outcome")
        table.add_column("seconds", justify="right")
        table.add_column("figure", overflow="fold")
        for name, case in sorted(self._cases.items()):
            outcome = Text(case.outcome, style=_OUTCOME_STYLE[case.outcome])
            table.add_row(Text(name), outcome, f"{case.seconds:.1f}", Text("; ".join(case.figures)))
        terminalreporter.ensure_newline()
        Console(file=terminalreporter._tw._file).print(table)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--cases`."""
    parser.addoption("--cases", action="store_true", help="run the cases only, and print their table")


def pytest_configure(config: pytest.Config) -> None:
    """Loads the table where it was asked for."""
    if config.getoption("--cases"):
        config.pluginmanager.register(CasesTable(), "cases-table")
