"""A data folder as events and items: an `interactions` file, an `items` file, perhaps embeddings.

Knows the layout only; `streaming/datasets/movielens.py` fetches a data set into it. Times become
milliseconds, ids become text, and events stand in the order of a stream.

interactions (Parquet, CSV, JSON Lines): `user_id, item_id, timestamp`; perhaps `position` (breaks ties of
    time), `rating` or `value`, and `action` (a name such as "click", or its number). What the columns may
    hold: `streaming/datasets/columns.py`.
items (the same formats): `item_id`; perhaps `title`, `brand`, `categories`, each may be empty. An item with
    events but without a line has no text.
title_emb*.npy: [number of lines of items, width] floats, row k for line k.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item
from streaming.datasets import columns
from streaming.datasets.items import read_items
from streaming.datasets.tables import find_file, read_table, require_columns
from streaming.errors import DatasetError

logger = logging.getLogger(__name__)

# As Headrace writes them itself.
INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.jsonl.gz"
_EMBEDDINGS_GLOB = "title_emb*.npy"
_LAYOUT = (
    "a data folder holds interactions (user_id, item_id, timestamp) and items (item_id, title, brand, "
    "categories), each as Parquet, CSV or JSON Lines"
)
_EVENT_COLUMNS = ("user_id", "item_id", "timestamp")
LEAD_MS = 86_400_000
# A folder in which more events than this are on items without a line was put together wrongly.
MAX_UNMATCHED_SHARE = 0.5

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """N events in stream order, and every item that has a line or an event.

    `user_id_N`, `item_id_N` object arrays of str; `time_ms_N`, `action_N`, `row_N` int64; `value_N`
    float64; `position_N` int64 or None where the file has none. Order: time, then position if there
    is one, then place in the file; `row_N` is that place. `event_id_N` are ids made of what the rows say: the
    same row has the same id in every folder and run, and of rows that say the same each has its own.
    `num_unmatched` events are on items without a line of their own.
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
    event_id_N: npt.NDArray[np.object_]
    num_unmatched: int = 0

    def __len__(self) -> int:
        return len(self.time_ms_N)

    def event_id(self, n: int) -> str:
        """The id of the n-th event."""
        return str(self.event_id_N[n])

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

    def announcements(self) -> list[Item]:
        """Every item with the time at which it was announced: `LEAD_MS` before its first event.

        Where nobody knows when an item came, "announced this moment" must not mean "chosen this moment". One
        without an event was there from the start.
        """
        first_ms: dict[str, int] = {}
        for item_id, time_ms in zip(self.item_id_N, self.time_ms_N.tolist(), strict=True):
            first_ms.setdefault(item_id, time_ms)
        announced = []
        for item in self.items:
            copy = Item()
            copy.CopyFrom(item)
            copy.announced_time_ms = first_ms.get(item.item_id, int(self.time_ms_N[0])) - LEAD_MS
            announced.append(copy)
        return announced

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


def load_dataset(
    folder: Path, columns_of: Mapping[str, str] | None = None, *, allow_unmatched: bool = False
) -> Dataset:
    """Reads a data folder; `columns_of` maps our names of columns to the files'.

    Raises DatasetError, which says what to do; also where more than `MAX_UNMATCHED_SHARE` of the events are
    on items that the items file does not have, unless `allow_unmatched`.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; {_LAYOUT}")
    names = dict(columns_of or {})
    path = find_file(folder, "interactions")
    item_path = find_file(folder, "items")
    own_names = _only(names, item_columns=False)
    table = read_table(path, own_names, as_text=("user_id", "item_id"), shared=("item_id",))
    require_columns(table, _EVENT_COLUMNS, path)
    if not table.num_rows:
        raise DatasetError(f"{path} has no rows")
    time_ms_N = columns.times_ms(table)
    position_N = columns.integers(table, "position") if "position" in table.column_names else None
    action_N, value_N = columns.actions(table)
    place_N = np.arange(len(time_ms_N), dtype=np.int64)
    order_N = np.lexsort((place_N, place_N if position_N is None else position_N, time_ms_N))
    user_id_N, item_id_N = (columns.ids(table, name)[order_N] for name in ("user_id", "item_id"))
    items, num_listed, num_unmatched = _load_items(
        folder, item_path, _only(names, item_columns=True), item_id_N
    )
    if not allow_unmatched and num_unmatched > MAX_UNMATCHED_SHARE * len(item_id_N):
        _refuse_unmatched(path, item_path, items[:num_listed], item_id_N, num_unmatched)
    event_id_N = _content_ids(user_id_N, item_id_N, time_ms_N[order_N], action_N[order_N], value_N[order_N])
    return Dataset(
        name=folder.resolve().name,
        items=items,
        user_id_N=user_id_N,
        item_id_N=item_id_N,
        time_ms_N=time_ms_N[order_N],
        action_N=action_N[order_N],
        value_N=value_N[order_N],
        row_N=place_N[order_N],
        position_N=None if position_N is None else position_N[order_N],
        event_id_N=event_id_N,
        num_unmatched=num_unmatched,
    )


def _only(names: Mapping[str, str], *, item_columns: bool) -> dict[str, str]:
    """Those of the names that are of the items file, or of the interactions file; `item_id` is of both."""
    of_items = {"title", "brand", "categories"}
    return {
        name: theirs
        for name, theirs in names.items()
        if name == "item_id" or (name in of_items) == item_columns
    }


def _content_ids(
    user_id_N: npt.NDArray[np.object_],
    item_id_N: npt.NDArray[np.object_],
    time_ms_N: Int64Array,
    action_N: Int64Array,
    value_N: npt.NDArray[np.float64],
) -> npt.NDArray[np.object_]:
    seen = Counter[str]()
    event_ids = []
    for row in zip(
        user_id_N, item_id_N, time_ms_N.tolist(), action_N.tolist(), value_N.tolist(), strict=True
    ):
        text = "\n".join(map(str, row))
        seen[text] += 1
        text += f"\n{seen[text]}"
        event_ids.append(hashlib.blake2b(text.encode(), digest_size=12).hexdigest())
    return np.asarray(event_ids, dtype=object)


def _refuse_unmatched(
    path: Path,
    item_path: Path,
    items: Sequence[Item],
    item_id_N: npt.NDArray[np.object_],
    num_unmatched: int,
) -> None:
    if not items:
        raise DatasetError(f"{item_path} has no items; give one line an item, or say --allow-unmatched")
    listed = [item.item_id for item in items[:3]]
    raise DatasetError(
        f"{num_unmatched:,} of {len(item_id_N):,} events in {path.name} are on items that {item_path.name} "
        f"does not have: events name {', '.join(map(repr, item_id_N[:3]))}, items are "
        f"{', '.join(map(repr, listed))}; mend the ids, or say --allow-unmatched"
    )


def _load_items(
    folder: Path, path: Path, names: Mapping[str, str], item_id_N: npt.NDArray[np.object_]
) -> tuple[list[Item], int, int]:
    """The items with a line, then those with events alone; how many have a line, and the others' events."""
    items = list(read_items(path, names))
    listed = {item.item_id for item in items}
    if len(listed) != len(items):
        [(twice, _)] = Counter(item.item_id for item in items).most_common(1)
        raise DatasetError(
            f"{path} has {len(items) - len(listed):,} item ids twice, such as {twice!r:.80}: keep one line "
            "for each item"
        )
    embeddings = sorted(folder.glob(_EMBEDDINGS_GLOB))
    if embeddings:
        vectors = _read_embeddings(embeddings[0], len(items))
        for item, vector in zip(items, vectors, strict=True):
            item.embeddings.append(Embedding(modality="text", values=vector.tolist()))
    events_of = Counter(item_id for item_id in item_id_N if item_id not in listed)
    if events_of:
        example = next(iter(events_of))
        logger.warning("items_without_a_line", extra={"num_items": len(events_of), "example": example})
    all_items = items + [Item(item_id=item_id) for item_id in events_of]
    return all_items, len(items), sum(events_of.values())


def _read_embeddings(path: Path, num_items: int) -> npt.NDArray[np.float32]:
    try:
        with path.open("rb") as file:
            vectors = np.load(file, allow_pickle=False)
    except Exception as error:  # what numpy raises for a file that is none has no common class
        raise DatasetError(f"{path} cannot be read: {str(error) or 'it is empty'}") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind not in "fiu":
        raise DatasetError(f"{path} must hold one array of real numbers")
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise DatasetError(f"{path} is {vectors.shape}; it needs one row for each of {num_items} items")
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, dtype=np.float32)
    broken = np.nonzero(~np.isfinite(vectors).all(axis=1))[0]
    if len(broken):
        raise DatasetError(f"{path}: {_rows(broken)} values that are no numbers, or too large for float32")
    empty = np.nonzero(~vectors.any(axis=1))[0]
    if len(empty):
        raise DatasetError(f"{path}: {_rows(empty)} only zeros, which say nothing")
    return vectors


def _rows(places: npt.NDArray[np.int64]) -> str:
    """`row 3 has`, or `row 3 and 2 others have`."""
    others = len(places) - 1
    return f"row {places[0] + 1} has" if not others else f"row {places[0] + 1} and {others:,} others have"
