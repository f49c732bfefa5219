"""Files as people have them: Parquet, CSV and JSON Lines, plain or gzipped, as one table of columns.

Finds the file of a stem in a folder and gives its columns the names that are asked for. Knows no events.
"""

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from streaming.errors import DatasetError

OUR_COLUMNS = (
    *("user_id", "item_id", "timestamp", "action", "rating", "value", "position"),
    *("title", "brand", "categories"),
)
FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")


# A row must fit into one.
_BLOCK_BYTES = 1 << 24
# Python gives up at a thousand or so, where Arrow still goes on.
_DEEP = 500


def find_file(folder: Path, stem: str, formats: Sequence[str] = FORMATS) -> Path:
    """`folder/stem` in one of the formats; raises DatasetError where there is none, or more than one."""
    found = [path for ending in formats if (path := folder / f"{stem}{ending}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(f"{folder} has {' and '.join(path.name for path in found)}: keep one of them")
    present = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())[:8]
    there = f"; it holds {', '.join(present)}" if present else "; it is empty"
    endings = ", ".join(ending.removeprefix(".") for ending in formats)
    raise DatasetError(f"{folder} has no {stem} file ({endings}){there}")


def read_table(
    path: Path, columns: Mapping[str, str], *, as_text: Sequence[str] = (), shared: Sequence[str] = ()
) -> pa.Table:
    """The file's table, with the columns named by the values of `columns` renamed to its keys.

    Columns in `as_text` are not guessed to be numbers where the format has no types: "007" stays. Those in
    `shared` are of other files too, and may have the name that we give them here. Raises DatasetError, which
    names the file.
    """
    try:
        table = _read(path, [columns.get(name, name) for name in as_text])
    except (pa.ArrowException, OSError) as error:
        cure = "; save it as UTF-8" if "UTF8" in str(error) else ""
        raise DatasetError(f"{path} cannot be read: {' '.join(str(error).split())}{cure}") from error
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DatasetError(f"{path} has the column {twice[0]!r} twice: keep one of them")
    columns = {
        name: theirs
        for name, theirs in columns.items()
        if theirs in table.column_names or name not in table.column_names or name not in shared
    }
    for name, theirs in columns.items():
        if theirs not in table.column_names:
            raise DatasetError(f"{path} has no column {theirs} (for {name}); it has {_names(table)}")
        if name != theirs and name in table.column_names:
            table = table.drop_columns([name])
    given = {theirs: name for name, theirs in columns.items()}
    return table.rename_columns([given.get(name, name) for name in table.column_names])


def require_columns(table: pa.Table, names: Sequence[str], path: Path) -> None:
    """Raises DatasetError where a column is not there or has empty values."""
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DatasetError(
            f"{path} has no column {', '.join(missing)}; it has {_names(table)}: rename it, or say which one "
            f"it is (--columns {missing[0]}=NAME)"
        )
    for name in names:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True) + 1
            raise DatasetError(
                f"{path}: column {name} has {table[name].null_count} empty values, the first in row {row:,}"
            )


def parse_columns(text: str | None) -> dict[str, str]:
    """`user_id=uid,item_id=sku` as a mapping from our names to theirs; raises DatasetError."""
    mapping = {}
    for part in (text or "").split(","):
        name, equals, theirs = part.strip().partition("=")
        if part.strip() and not (name and equals and theirs):
            raise DatasetError(
                f"{part.strip()!r} names no column: write OUR_NAME=THEIR_NAME, separated by commas"
            )
        if name and name not in OUR_COLUMNS:
            raise DatasetError(f"{name!r:.40} is none of our columns: {', '.join(OUR_COLUMNS)}")
        if name:
            mapping[name] = theirs
    return mapping


def _read(path: Path, text_columns: Sequence[str]) -> pa.Table:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return pa.parquet.read_table(path)
    # by its path, which says whether it is compressed: Arrow reads ahead, and nothing of Python's may be in
    # the midst of that when the process ends
    if name.endswith(".csv"):
        types = dict.fromkeys(text_columns, pa.string())
        options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        reading = pa.csv.ReadOptions(block_size=_BLOCK_BYTES)
        return pa.csv.read_csv(path, read_options=reading, convert_options=options)
    _refuse_deep_lines(path)
    return pa.json.read_json(path, read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES))


def _refuse_deep_lines(path: Path) -> None:
    """Raises DatasetError for a line that nests so deep that Arrow's reader would end the process."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.count(b"[") + line.count(b"{") < _DEEP:
                continue
            try:
                json.loads(line)
            except RecursionError as error:
                raise DatasetError(f"{path}, line {number:,}: lists or objects nest too deep") from error
            except ValueError:
                pass  # Arrow says what is wrong


def _names(table: pa.Table) -> str:
    return ", ".join(table.column_names[:12])
