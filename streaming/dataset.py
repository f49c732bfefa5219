"""A data folder as events and items: `interactions.parquet`, `items.jsonl.gz`, perhaps embeddings.

Knows the layout only; `streaming/movielens.py` fetches a data set into it. Times become milliseconds,
ids become text, and events stand in the order of a stream.

interactions.parquet: `user_id, item_id, timestamp` (seconds since the epoch); perhaps `position` (breaks
    ties of time), `rating` or `value`, and `action` (a name such as "click", or its number).
items.jsonl.gz: one JSON object a line with `item_id`; perhaps `title`, `brand`, `categories`, each may
    be null. An item with events but without a line has no text.
title_emb*.npy: [number of lines of items.jsonl.gz, width] floats, row k for line k.
"""

import gzip
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item
from streaming.errors import DatasetError
from streaming.events import MAX_CATEGORIES, MAX_CATEGORY_CHARS, MAX_TEXT_CHARS

logger = logging.getLogger(__name__)

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.jsonl.gz"
_EMBEDDINGS_GLOB = "title_emb*.npy"
_LAYOUT = (
    f"a data folder holds {INTERACTIONS_FILE} (user_id, item_id, timestamp in seconds) and {ITEMS_FILE} "
    "(one JSON object a line with item_id, title, brand, categories)"
)

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """N events in stream order, and every item that has a line or an event.

    `user_id_N`, `item_id_N` object arrays of str; `time_ms_N`, `action_N`, `row_N` int64; `value_N`
    float64; `position_N` int64 or None where the file has none. Order: time, then position if there
    is one, then place in the file. `row_N` is that place: it makes an event's id the same in every run.
    """

    name: str
    items: list[Item]
    user_id_N: npt.NDArray[np.object_]
    item_id_N: npt.NDArray[np.object_]
    time_ms_N: Int64Array
    action_N: Int64Array
    value_N: npt.NDArray[np.float64]
    row_N: Int64Array
    position_N: Int64Array | None

    def __len__(self) -> int:
        return len(self.time_ms_N)

    def event_id(self, n: int) -> str:
        """The id of the n-th event: "{folder name}-{row in the file}"."""
        return f"{self.name}-{self.row_N[n]}"

    def event(self, n: int) -> Event:
        """The n-th event in stream order."""
        return Event(
            event_id=self.event_id(n),
            user_id=self.user_id_N[n],
            item_id=self.item_id_N[n],
            action=Action.ValueType(int(self.action_N[n])),
            event_time_ms=int(self.time_ms_N[n]),
            value=float(self.value_N[n]),
        )

    def bounds(self, start: float, end: float) -> tuple[int, int]:
        """The first event of a slice by share of events, and the one after its last: 0.7, 1.0 is the
        last 30%. Raises ValueError unless 0 <= start <= end <= 1.
        """
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"a slice must have 0 <= start <= end <= 1, not {start} to {end}")
        return round(start * len(self)), round(end * len(self))

    def ending_at(self, time_ms: int) -> "Dataset":
        """The same events, moved in time together so that the last one happens at `time_ms`.

        An old data set replayed into a running service must not look decades late beside what happens
        there now: every statistic that decays by event time would be zero.
        """
        if not len(self):
            return self
        return replace(self, time_ms_N=self.time_ms_N + (time_ms - int(self.time_ms_N[-1])))


def load_dataset(folder: Path) -> Dataset:
    """Reads a data folder.

    Actions: the column `action` if there is one; else a rating is ACTION_RATING with its value, and an
    interaction without one is ACTION_CLICK. Raises DatasetError, which says what to do.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; {_LAYOUT}")
    for name in (INTERACTIONS_FILE, ITEMS_FILE):
        if not (folder / name).is_file():
            raise DatasetError(f"{folder} has no {name}; {_LAYOUT}")
    table = _read_interactions(folder / INTERACTIONS_FILE)
    columns = set(table.column_names)
    time_ms_N = _times(table)
    position_N = _integers(table, "position") if "position" in columns else None
    action_N, value_N = _actions(table)
    place_N = np.arange(len(time_ms_N), dtype=np.int64)
    order_N = np.lexsort((place_N, place_N if position_N is None else position_N, time_ms_N))
    user_id_N, item_id_N = _ids(table, "user_id"), _ids(table, "item_id")
    return Dataset(
        name=folder.resolve().name,
        items=_load_items(folder, item_id_N),
        user_id_N=user_id_N[order_N],
        item_id_N=item_id_N[order_N],
        time_ms_N=time_ms_N[order_N],
        action_N=action_N[order_N],
        value_N=value_N[order_N],
        row_N=place_N[order_N],
        position_N=None if position_N is None else position_N[order_N],
    )


def _read_interactions(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error
    missing = {"user_id", "item_id", "timestamp"} - set(table.column_names)
    if missing:
        raise DatasetError(f"{path} has no column {', '.join(sorted(missing))}; {_LAYOUT}")
    if not table.num_rows:
        raise DatasetError(f"{path} has no rows")
    for name in ("user_id", "item_id", "timestamp"):
        if table[name].null_count:
            raise DatasetError(f"{path}: column {name} has {table[name].null_count} empty values")
    return table


def _ids(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    try:
        texts = pc.cast(table[name], pa.string())
    except pa.ArrowException as error:
        raise DatasetError(f"column {name} is {table[name].type}; it must be numbers or text") from error
    # one str object per id, not per event
    encoded = texts.combine_chunks().dictionary_encode()
    names = np.asarray(encoded.dictionary.to_pylist(), dtype=object)
    ids: npt.NDArray[np.object_] = names[encoded.indices.to_numpy()]
    return ids


def _times(table: pa.Table) -> Int64Array:
    column = table["timestamp"]
    if pa.types.is_timestamp(column.type):
        return np.asarray(pc.cast(column, pa.timestamp("ms"), safe=False).to_numpy().astype(np.int64))
    try:
        seconds_N = column.to_numpy().astype(np.float64)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DatasetError(f"column timestamp is {column.type}; it must be seconds") from error
    if not np.isfinite(seconds_N).all() or seconds_N.min() <= 0 or seconds_N.max() > 1e11:
        raise DatasetError("column timestamp must be seconds since 1970, all after it (not milliseconds)")
    return np.asarray(np.rint(seconds_N * 1000.0), dtype=np.int64)


def _integers(table: pa.Table, name: str) -> Int64Array:
    try:
        return np.asarray(pc.cast(table[name], pa.int64()).to_numpy(), dtype=np.int64)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(f"column {name} must be whole numbers: {error}") from error


def _actions(table: pa.Table) -> tuple[Int64Array, npt.NDArray[np.float64]]:
    num_events, columns = table.num_rows, table.column_names
    value_name = next((name for name in ("value", "rating") if name in columns), None)
    value_N = np.zeros(num_events)
    if value_name:
        try:
            value_N = np.nan_to_num(pc.cast(table[value_name], pa.float64()).to_numpy(), posinf=0, neginf=0)
        except (pa.ArrowException, ValueError) as error:
            raise DatasetError(f"column {value_name} must be numbers: {error}") from error
    if "action" in columns:
        return _named_actions(table["action"]), value_N
    action = Action.ACTION_RATING if value_name == "rating" else Action.ACTION_CLICK
    return np.full(num_events, int(action), dtype=np.int64), value_N


def _named_actions(column: pa.ChunkedArray) -> Int64Array:
    numbers: dict[Any, int] = {}
    for value in column.unique().to_pylist():
        text = str(value).strip().upper()
        name = text if text.startswith("ACTION_") else f"ACTION_{text}"
        number = int(value) if isinstance(value, int) else dict(Action.items()).get(name, 0)
        if number not in Action.values() or number == Action.ACTION_UNSPECIFIED:
            known = ", ".join(key.removeprefix("ACTION_").lower() for key in Action.keys()[1:])
            raise DatasetError(f"column action has {value!r}; known actions are {known}")
        numbers[value] = number
    return np.array([numbers[value] for value in column.to_pylist()], dtype=np.int64)


def _load_items(folder: Path, item_id_N: npt.NDArray[np.object_]) -> list[Item]:
    items = list(_read_items(folder / ITEMS_FILE))
    listed = {item.item_id for item in items}
    if len(listed) != len(items):
        raise DatasetError(f"{folder / ITEMS_FILE} has {len(items) - len(listed)} item ids twice")
    embeddings = sorted(folder.glob(_EMBEDDINGS_GLOB))
    if embeddings:
        vectors = _read_embeddings(embeddings[0], len(items))
        for item, vector in zip(items, vectors, strict=True):
            item.embeddings.append(Embedding(modality="text", values=vector.tolist()))
    bare = [item_id for item_id in dict.fromkeys(item_id_N) if item_id not in listed]
    if bare:
        logger.warning("items_without_text", extra={"num_items": len(bare), "example": bare[0]})
    return items + [Item(item_id=item_id) for item_id in bare]


def _read_items(path: Path) -> Iterator[Item]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse_item(line, f"{path}, line {number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _parse_item(line: str, where: str) -> Item:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict) or _text(fields.get("item_id")) == "":
        raise DatasetError(f"{where}: not an object with item_id")
    categories = fields.get("categories")
    flat = categories if isinstance(categories, list) else [categories]
    names = [_text(name) for part in flat for name in (part if isinstance(part, list) else [part])]
    return Item(
        item_id=_text(fields["item_id"]),
        title=_text(fields.get("title"))[:MAX_TEXT_CHARS],
        brand=_text(fields.get("brand"))[:MAX_TEXT_CHARS],
        categories=list(dict.fromkeys(name[:MAX_CATEGORY_CHARS] for name in names if name))[:MAX_CATEGORIES],
    )


def _text(value: object) -> str:
    """The text of a JSON scalar; empty for null and for NaN, which pandas writes for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _read_embeddings(path: Path, num_items: int) -> npt.NDArray[np.float32]:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise DatasetError(f"{path} is {vectors.shape}; it needs one row for each of {num_items} items")
    if not np.isfinite(vectors).all():
        raise DatasetError(f"{path} has values that are not finite")
    return np.asarray(vectors, dtype=np.float32)
