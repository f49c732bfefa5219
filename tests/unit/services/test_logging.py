"""Log lines: one JSON object each, whoever writes them."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.logging import configure_logging


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Puts the root logger back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was written to stdout, which is no terminal."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_our_lines_and_those_of_libraries_look_alike(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("generator")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("request", method="Generate", latency_ms=1.5)
        logging.getLogger("streaming.clients.tail").warning("tail_waits", extra={"topics": ["items"]})
    ours, theirs = lines(capsys)
    assert ours.keys() == {"event", "method", "latency_ms", "request_id", "service", "level", "timestamp"}
    assert (ours["event"], ours["latency_ms"], ours["level"]) == ("request", 1.5, "info")
    assert (theirs["event"], theirs["topics"], theirs["level"]) == ("tail_waits", ["items"], "warning")
    assert {line["service"] for line in (ours, theirs)} == {"generator"}
    assert {line["request_id"] for line in (ours, theirs)} == {"r1"}


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("ranker", "WARNING")
    structlog.get_logger().info("request")
    logging.getLogger("services").info("request")
    structlog.get_logger().warning("this")
    logging.getLogger("aiokafka").warning("and this")
    assert [line["event"] for line in lines(capsys)] == ["this", "and this"]


def test_a_traceback_stays_inside_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway")
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError as error:
        structlog.get_logger().error("request failed", exc_info=error)
    [line] = lines(capsys)
    assert "ZeroDivisionError: by nothing" in line["exception"]
    assert "Traceback" in line["exception"]


def test_log_events_are_named_alike_and_a_field_has_one_name() -> None:
    """Events in snake_case, what went wrong as `error`, a release as `release_id`."""
    calls = [
        (path, node)
        for package in ("services", "streaming")
        for path in (Path(__file__).parents[3] / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("log", "logger")
        and node.func.attr in ("debug", "info", "warning", "error", "exception")
    ]
    assert len(calls) > 30
    for path, node in calls:
        event = node.args[0]
        assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: the event's name is no constant"
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*( .*)?", event.value), f"{path}:{node.lineno}: {event.value!r}"
        if path.is_relative_to(Path(__file__).parents[3] / "services"):
            assert " " not in event.value, f"{path}:{node.lineno}: {event.value!r}"
        names = {keyword.arg for keyword in node.keywords}
        assert not names & {"problem", "release", "err", "exception"}, f"{path}:{node.lineno}: {names}"
