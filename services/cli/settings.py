"""`headrace settings`: every variable with its default, its type, what it is now, and what it means.

Read off the one tree of `services.settings`: defaults and types from its fields, meanings from the docstrings
of its groups. `--markdown` prints docs/configuration.md. A secret's value is never shown.
"""

import dataclasses
import inspect
import json as json_text
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from services.cli import terminal
from services.environment import PREFIX
from services.settings import Settings, load_settings

HIDDEN = "(hidden)"

# Settings outside every group: no docstring describes them.
_UNGROUPED = {
    "layout": "gateway, generator and ranker in one process (together) or in one each (apart).",
    "torch_threads": "how many threads torch uses in each service.",
    "log_level": "log lines below this level are not written.",
}
_SECRET_NAME = re.compile(r"(?:^|_)(?:password|passphrase|secret|credentials?|api_key|token)$")
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
}

_PAGE = """\
# Configuration

Settings are environment variables (`HEADRACE_BROKER__BOOTSTRAP_SERVERS`, `HEADRACE_MODEL__D_MODEL`, ...).
The tree is `services/settings.py`; each group stands in the file of its owner. A misspelt name is refused,
and so is a value out of range, before anything starts.

`headrace settings` shows this list with what the environment sets; `--json` is for programs. A whole group
may be given as JSON: `HEADRACE_GATEWAY='{"max_k": 50}'`. That is the only way to give a list, such as the
`half_lives_s` of `HEADRACE_STATISTICS`.

This page is what `headrace settings --markdown` prints.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One variable. `value` is None where the environment leaves the default as it is.

    `meaning` is what the group's docstring says of it: the sentences that name it, or else the whole.
    """

    variable: str
    type: str
    default: str
    value: str | None
    meaning: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The settings of one component; `variable` takes all of them as JSON, `meaning` is the docstring.

    Those of no component come last, in a group without a variable.
    """

    variable: str
    meaning: str
    settings: tuple[Setting, ...]


def groups_of(tree: type[BaseSettings], present: BaseSettings) -> list[Group]:
    """What can be set in `tree`, with the values of `present` where they are not the defaults."""
    hints = typing.get_type_hints(tree, include_extras=True)
    told = EnvSettingsSource(tree)()
    groups, single = [], []
    for name, field in tree.model_fields.items():
        default, value, is_told = field.default, getattr(present, name), name in told
        if dataclasses.is_dataclass(default):
            meaning = _paragraph(type(default))
            settings = tuple(_inside(f"{PREFIX}{name.upper()}", default, value, told.get(name)))
            groups.append(Group(variable=f"{PREFIX}{name.upper()}", meaning=meaning, settings=settings))
        else:
            meaning = field.description or _UNGROUPED.get(name, "")
            single.append(_setting(f"{PREFIX}{name.upper()}", hints[name], default, value, is_told, meaning))
    if single:
        meaning = " ".join(f"`{one.variable}`: {one.meaning}" for one in single)
        groups.append(Group(variable="", meaning=meaning, settings=tuple(single)))
    return groups


def _inside(prefix: str, default: Any, value: Any, told: Any) -> Iterator[Setting]:
    """The settings of one dataclass, and of those inside it. `told` is what the environment says of it."""
    hints = typing.get_type_hints(type(default), include_extras=True)
    sentences = _sentences(type(default))
    told = told if isinstance(told, Mapping) else {}
    for field in dataclasses.fields(default):
        name, variable = field.name, f"{prefix}__{field.name.upper()}"
        field_default, field_value = getattr(default, name), getattr(value, name)
        if dataclasses.is_dataclass(field_default):
            yield from _inside(variable, field_default, field_value, told.get(name))
            continue
        about = [sentence for sentence in sentences if re.search(rf"`{name}\b", sentence)]
        meaning = " ".join(about or sentences)
        yield _setting(variable, hints[name], field_default, field_value, name in told, meaning)


def _setting(variable: str, hint: Any, default: Any, value: Any, is_told: bool, meaning: str) -> Setting:
    is_secret = _is_secret(variable, hint)
    is_now = is_told or value != default
    return Setting(
        variable=variable,
        type=_type_text(hint),
        default=_value_text(default, is_secret),
        value=_value_text(value, is_secret) if is_now else None,
        meaning=meaning,
    )


def _is_secret(variable: str, hint: Any) -> bool:
    kinds = {hint, *typing.get_args(hint)}
    return bool(kinds & {SecretStr, SecretBytes}) or _SECRET_NAME.search(variable.lower()) is not None


def _value_text(value: Any, is_secret: bool) -> str:
    """The value as the environment would hold it; a secret, and a login inside a URL, hidden."""
    if is_secret:
        return HIDDEN if value else ""
    if isinstance(value, str | Path):
        return _LOGIN_IN_URL.sub(HIDDEN, str(value))
    return json_text.dumps(value, default=str)


def _type_text(hint: Any) -> str:
    """A type in words, with its bounds: `whole number, 1 to 65535`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = _bounds_text(parts[1:])
        return _type_text(parts[0]) + (f", {bounds}" if bounds else "")
    if origin is Literal:
        return ", ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in parts if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_type_text(parts[0])}s"
    if hint in (SecretStr, SecretBytes):
        return "text, secret"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def _bounds_text(metadata: tuple[Any, ...]) -> str:
    bounds: dict[str, Any] = {}
    for one in metadata:
        for part in one.metadata if isinstance(one, FieldInfo) else (one,):
            for name in ("ge", "gt", "le", "lt", "min_length"):
                if getattr(part, name, None) is not None:
                    bounds[name] = getattr(part, name)
    if bounds.keys() >= {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [f"{word} {bounds[name]}" for name, word in words.items() if name in bounds]
    return ", ".join(found + (["not empty"] if "min_length" in bounds else []))


def _paragraph(owner: type) -> str:
    return " ".join((inspect.getdoc(owner) or "").split())


def _sentences(owner: type) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z`])", _paragraph(owner))


def markdown_page(groups: list[Group]) -> str:
    """docs/configuration.md: the same on every machine, so without the values of this one."""
    lines = [_PAGE]
    for group in groups:
        heading = f"`{group.variable}__*`" if group.variable else "The others"
        lines += [f"## {heading}\n", f"{group.meaning}\n", "| variable | type | default |"]
        lines.append("| --- | --- | --- |")
        for one in group.settings:
            default = f"`{one.default}`" if one.default else "empty"
            lines.append(f"| `{one.variable}` | {one.type} | {default} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def settings(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md, without present values.")
    ] = False,
) -> None:
    """List every setting: variable, type, default, the value in effect, and meaning."""
    groups = groups_of(Settings, load_settings())
    if markdown:
        typer.echo(markdown_page(groups), nl=False)
        return
    if json:
        terminal.print_json([dataclasses.asdict(one) for group in groups for one in group.settings])
        return
    for group in groups:
        rows = [(one.variable, one.type, one.default, one.value or "") for one in group.settings]
        terminal.print_table(group.meaning, ["variable", "type", "default", "now"], rows, ids=["variable"])
