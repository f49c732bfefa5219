"""The lines of an `items` file as items: JSON Lines (also gzipped), or a table.

Texts are cut to what an event stream may hold, categories may be nested or written as text.
"""

import ast
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from protos.headrace.v1.items_pb2 import Item
from streaming.datasets.tables import read_table, require_columns
from streaming.errors import DatasetError
from streaming.messages.events import MAX_CATEGORIES, MAX_CATEGORY_CHARS, MAX_TEXT_CHARS, id_problem, id_text

ITEM_COLUMNS = ("item_id", "title", "brand", "categories")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def read_items(path: Path, names: Mapping[str, str]) -> Iterator[Item]:
    """The items of a file, line by line; `names` are the columns that have others there.

    Raises DatasetError, naming the line, where one cannot be read.
    """
    if "json" in path.name:
        yield from _read_item_lines(path, names)
        return
    table = read_table(path, names, as_text=ITEM_COLUMNS, shared=("item_id",))
    require_columns(table, ("item_id",), path)
    present = [name for name in ITEM_COLUMNS if name in table.column_names]
    for number, fields in enumerate(table.select(present).to_pylist(), start=1):
        yield _item(fields, f"{path}, row {number}")


def _read_item_lines(path: Path, names: Mapping[str, str]) -> Iterator[Item]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as lines
        ):
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse_item(line, names, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        cure = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DatasetError(f"{path} cannot be read: {error}{cure}") from error


def _parse_item(line: str, names: Mapping[str, str], where: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DatasetError(f"{where}: not an object with item_id")
    return _item({name: fields.get(names.get(name, name)) for name in ITEM_COLUMNS}, where)


def _item(fields: Mapping[str, object], where: str) -> Item:
    try:
        item_id = id_text(fields.get("item_id"))
        problem = id_problem(item_id)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise DatasetError(f"{where}: item_id {fields.get('item_id')!r:.60} {problem}")
    for name in ("title", "brand"):
        if isinstance(fields.get(name), list | dict):
            raise DatasetError(f"{where}: {name} is a {type(fields[name]).__name__}: it must be text")
    categories = _written_list(fields.get("categories"))
    flat = categories if isinstance(categories, list) else [categories]
    names = [name for part in flat for name in (part if isinstance(part, list) else [part])]
    if any(isinstance(name, list | dict) for name in names):
        raise DatasetError(f"{where}: categories must be texts, or lists of texts")
    found = [_text(name) for name in names]
    return Item(
        item_id=item_id,
        title=_text(fields.get("title"))[:MAX_TEXT_CHARS],
        brand=_text(fields.get("brand"))[:MAX_TEXT_CHARS],
        categories=list(dict.fromkeys(name[:MAX_CATEGORY_CHARS] for name in found if name))[:MAX_CATEGORIES],
    )


def _written_list(categories: object) -> object:
    """A list that was written as text, as CSV files have it (JSON's way or Python's); all else as it is."""
    if isinstance(categories, str) and categories.strip()[:1] == "[" and categories.strip()[-1:] == "]":
        try:
            found = ast.literal_eval(categories.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return categories
        return found if isinstance(found, list) else categories
    return categories


def _text(value: object) -> str:
    """The text of a JSON scalar; empty for null and for NaN, which pandas writes for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        # text in a Parquet file whose writer did not say that it is text
        value = value.decode(errors="replace")
    # half of a surrogate pair is no character: JSON may hold one, protobuf and a terminal may not
    return _HALF_A_PAIR.sub("\ufffd", str(value).strip())
