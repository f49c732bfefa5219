"""`headrace settings`: the whole tree, the values in effect, and no secret."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.cli.main import main
from services.cli.settings import HIDDEN, Group, Setting, groups_of, markdown_page
from services.environment import PREFIX
from services.settings import Settings, load_settings, to_environment

NOTHING = SecretStr("")
PAGE = Path(__file__).parents[4] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str]:
    """The exit code of `headrace settings OPTIONS`, and its standard output."""
    monkeypatch.setattr(sys, "argv", ["headrace", "settings", *options])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().out


def by_variable(groups: list[Group]) -> dict[str, Setting]:
    return {one.variable: one for group in groups for one in group.settings}


def test_the_page_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_GATEWAY__MAX_K", "7")
    code, page = printed(monkeypatch, capsys, "--markdown")
    assert code == 0
    assert page == PAGE.read_text(encoding="utf-8"), "headrace settings --markdown > docs/configuration.md"


def test_every_setting_is_listed_with_its_meaning() -> None:
    found = by_variable(groups_of(Settings, Settings()))
    names = {name.split("__")[0] for name in found}
    assert names == {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert len(found) == len(
        [part for group in to_environment(Settings()).values() for part in parts_of(group)]
    )
    assert [one.variable for one in found.values() if not one.meaning or not one.type] == []
    assert found["HEADRACE_ENDPOINTS__GATEWAY"].type == "whole number, 1 to 65535"
    assert found["HEADRACE_SERVER__STOP_GRACE_S"].type == "number, at least 0"
    assert found["HEADRACE_STATISTICS__HALF_LIVES_S"].type == "list of numbers"
    assert found["HEADRACE_LOG_LEVEL"].type == "DEBUG, INFO, WARNING, ERROR, CRITICAL"
    assert found["HEADRACE_MODEL__TRUNK"].default == "softmax"
    assert "hstu" in found["HEADRACE_MODEL__TRUNK"].meaning


def parts_of(value: str) -> list[str]:
    """The settings in a variable of `to_environment`: those of a group, or itself."""
    try:
        loaded = json.loads(value)
    except ValueError:
        return [value]
    return list(loaded) if isinstance(loaded, dict) else [value]


def test_every_default_is_taken_back_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for group in groups_of(Settings, Settings()):
        lists = {one.variable: one.default for one in group.settings if one.type.startswith("list")}
        for one in group.settings:
            if one.variable not in lists:
                monkeypatch.setenv(one.variable, one.default)
        if lists:  # they come with their group alone
            names = {name.rpartition("__")[2].lower(): json.loads(text) for name, text in lists.items()}
            monkeypatch.setenv(group.variable, json.dumps(names))
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HEADRACE_GATEWAY__MAX_K", "7", "7"),
        ("headrace_gateway__max_k", "7", "7"),
        ("HEADRACE_GATEWAY", '{"max_k": 7}', "7"),
        ("HEADRACE_GATEWAY__MAX_K", "100", "100"),
        ("HEADRACE_GATEWAY__TRACK_DEADLINE_S", "1", None),
    ],
)
def test_a_value_of_the_environment_is_shown(
    name: str, value: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert by_variable(groups_of(Settings, load_settings()))["HEADRACE_GATEWAY__MAX_K"].value == shown


def test_json_is_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_ENDPOINTS__BASE_PORT", "9400")
    code, text = printed(monkeypatch, capsys, "--json")
    assert code == 0
    found = {one["variable"]: one for one in json.loads(text)}
    assert found["HEADRACE_ENDPOINTS__BASE_PORT"]["value"] == "9400"
    assert found["HEADRACE_BROKER__BOOTSTRAP_SERVERS"]["value"] == "127.0.0.1:9492"
    assert found["HEADRACE_LOG_LEVEL"]["value"] is None


def test_a_person_sees_the_value_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_TORCH_THREADS", "13")
    code, text = printed(monkeypatch, capsys)
    assert code == 0
    assert "13" in text
    assert "HEADRACE_TORCH_THREADS" in text


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What is inside; `limit` bounds it."""

    limit: int = 3
    api_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who may come in."""

    password: SecretStr = NOTHING
    url: str = "s3://bucket"
    inner: Inner = Inner()


class House(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True)

    door: Door = Door()
    token: SecretStr | None = None


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DOOR__PASSWORD", "hunter2")
    monkeypatch.setenv("HEADRACE_DOOR__INNER__API_KEY", "hunter2")
    monkeypatch.setenv("HEADRACE_DOOR__INNER__LIMIT", "4")
    monkeypatch.setenv("HEADRACE_DOOR__URL", "s3://me:hunter2@bucket/place")
    monkeypatch.setenv("HEADRACE_TOKEN", "hunter2")
    groups = groups_of(House, House())
    found = by_variable(groups)
    assert "hunter2" not in repr(groups) + markdown_page(groups)
    hidden = ("HEADRACE_DOOR__PASSWORD", "HEADRACE_DOOR__INNER__API_KEY", "HEADRACE_TOKEN")
    assert [found[name].value for name in hidden] == [HIDDEN] * 3
    assert found["HEADRACE_DOOR__URL"].value == f"s3://{HIDDEN}@bucket/place"
    assert found["HEADRACE_DOOR__INNER__LIMIT"].value == "4"
    assert found["HEADRACE_DOOR__INNER__LIMIT"].meaning == "What is inside; `limit` bounds it."
