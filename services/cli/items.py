"""`headrace items`: a file of items, announced through the gateway."""

import gzip
import json as json_module
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import calls, terminal
from services.errors import ServiceError
from services.settings import load_settings

if TYPE_CHECKING:
    from protos.headrace.v1.items_pb2 import Item

app = typer.Typer(help="Announce items.", no_args_is_help=True)

_CHUNK_ITEMS = 100


class UnreadableItems(ServiceError):
    """A file of items has a line that is no item; the text names the line."""


@app.callback()
def group() -> None:
    """Announce items."""


@app.command("import")
def import_items(
    file: Annotated[Path, typer.Argument(help="JSON lines, perhaps .gz.", exists=True, dir_okay=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Announce every item of a file: one JSON object a line, with the fields of headrace.v1.Item.

    Fields that an item does not have are left out and named, and null is as good as absent.
    """
    from protos.headrace.v1.recommend_pb2 import UpsertItemsRequest

    unknown = Counter[str]()
    items = list(read_items(file, unknown))
    if unknown:
        names = ", ".join(f"{name!r:.40} ({count:,} lines)" for name, count in unknown.most_common(5))
        more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
        terminal.warn(f"left out, since items have no such fields: {names}{more}")
    if not items:
        raise UnreadableItems(f"{file} has no items: it takes one JSON object a line")
    num_accepted = 0
    with calls.gateway(load_settings()) as stub, terminal.progress_bars() as bars:
        for start in range(0, len(items), _CHUNK_ITEMS):
            request = UpsertItemsRequest(items=items[start : start + _CHUNK_ITEMS])
            num_accepted += stub.UpsertItems(request, timeout=calls.CALL_TIMEOUT_S).num_accepted
            bars("items announced", num_accepted, len(items))
    if json:
        terminal.print_json({"num_accepted": num_accepted})
    else:
        num_withdrawn = sum(item.unavailable for item in items)
        withdrawn = f", {num_withdrawn:,} of them withdrawn" if num_withdrawn else ""
        terminal.out.print(f"{num_accepted:,} items announced{withdrawn}", highlight=False)
        terminal.note(
            "each record replaces all that was known of its item; in a moment, `headrace dlq list items` "
            "shows those that could not be used"
        )


def read_items(path: Path, unknown: Counter[str]) -> "Iterator[Item]":
    """The items of a file of JSON lines; raises UnreadableItems with the line's number.

    `unknown` counts the fields that items do not have.
    """
    with (
        gzip.open(path, "rt", encoding="utf-8-sig")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8-sig") as lines
    ):
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _item(line, f"{path}, line {number}", unknown)
        except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
            raise UnreadableItems(f"{path} cannot be read as JSON Lines: {error}") from error


def _item(line: str, where: str, unknown: Counter[str]) -> "Item":
    from google.protobuf import json_format

    from protos.headrace.v1.items_pb2 import Item
    from streaming.messages.events import ids_as_text, validate_item

    try:
        fields: Any = json_module.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableItems(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnreadableItems(f"{where}: not a JSON object")
    known = {name for field in Item.DESCRIPTOR.fields for name in (field.name, field.json_name)}
    unknown.update(fields.keys() - known)
    try:
        ids_as_text(fields, Item())
        item = json_format.ParseDict(fields, Item(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError) as error:
        raise UnreadableItems(f"{where}: {error}") from error
    for field, problem in validate_item(item):
        raise UnreadableItems(f"{where}: {field} {problem}")
    return item
