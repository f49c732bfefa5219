"""What the columns of a data folder's events mean: ids as text, times in milliseconds, actions with values.

Each is read as meant or refused by name: an id that arrives as 12.0 is "12", and the unit of times is told by
their size.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from protos.headrace.v1.events_pb2 import Action
from streaming.errors import DatasetError
from streaming.messages.events import id_problem, id_text
from streaming.messages.times import EARLIEST_MS, LATEST_MS

Int64Array = npt.NDArray[np.int64]

_UNITS = {"seconds": 1_000.0, "milliseconds": 1.0, "microseconds": 1e-3, "nanoseconds": 1e-6}


def ids(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    """A column of ids as text; raises DatasetError, naming the first that is none, and its row."""
    column = _plain(table, name)
    # one str object per id, not per event; in the order in which they come first
    encoded = column.combine_chunks().dictionary_encode()
    place_N = encoded.indices.to_numpy()
    texts = []
    for place, value in enumerate(encoded.dictionary.to_pylist()):
        text, problem = _read_id(value)
        if problem:
            raise DatasetError(
                f"column {name} has {value!r:.60} in {_first_row(place_N == place)}, which {problem}"
            )
        texts.append(text)
    found: npt.NDArray[np.object_] = np.asarray(texts, dtype=object)[place_N]
    return found


def _read_id(value: object) -> tuple[str, str | None]:
    """The id's text, and what is wrong with it, if anything."""
    try:
        text = id_text(value)
    except ValueError as error:
        return "", str(error)
    return text, id_problem(text)


def _first_row(found_N: npt.NDArray[np.bool_]) -> str:
    """`row 3`, counted from 1, for the first place that is true."""
    return f"row {int(np.argmax(found_N)) + 1:,}"


def times_ms(table: pa.Table) -> Int64Array:
    """The column `timestamp` in milliseconds since 1970; text without a zone is UTC.

    Takes dates, timestamps, ISO 8601 text, and numbers of seconds, milliseconds, microseconds or nanoseconds:
    the unit in which all of them lie between 1990 and 2100. Raises DatasetError for all else.
    """
    column = table["timestamp"]
    kind = column.type
    if pa.types.is_duration(kind) or pa.types.is_time(kind) or pa.types.is_boolean(kind):
        raise DatasetError(f"column timestamp is {kind}; it must be times or numbers")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _parsed(column)
    if pa.types.is_date(kind) or pa.types.is_timestamp(column.type):
        times_N = np.asarray(pc.cast(column, pa.timestamp("ms"), safe=False).to_numpy().astype(np.int64))
        return _plausible(times_N, f"column timestamp ({kind})")
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        raise DatasetError(
            f"column timestamp is {kind}, which holds seconds of today to the nearest 128 only: "
            "store float64 or int64"
        )
    try:
        numbers_N = column.to_numpy().astype(np.float64)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DatasetError(f"column timestamp is {kind}; it must be times or numbers") from error
    if not np.isfinite(numbers_N).all():
        raise DatasetError(f"column timestamp has no number in {_first_row(~np.isfinite(numbers_N))}")
    for milliseconds in _UNITS.values():
        if numbers_N.min() * milliseconds >= EARLIEST_MS and numbers_N.max() * milliseconds <= LATEST_MS:
            if milliseconds < 1.0:
                return np.asarray(column.to_numpy().astype(np.int64) // round(1 / milliseconds))
            return np.asarray(np.rint(numbers_N * milliseconds), dtype=np.int64)
    least, most = numbers_N.min(), numbers_N.max()
    raise DatasetError(
        f"column timestamp has {least:.15g} ({_first_row(numbers_N == least)}) to {most:.15g} "
        f"({_first_row(numbers_N == most)}), which are not all seconds, milliseconds, microseconds or "
        "nanoseconds since 1970 between 1990 and 2100"
    )


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 text as timestamps: with a zone each, or none with one, which is UTC."""
    kinds = (pa.timestamp("ms", tz="UTC"), pa.timestamp("ms"))
    for kind in kinds:
        try:
            return pc.cast(column, kind)
        except pa.ArrowException:
            pass
    for row, text in enumerate(column.to_pylist(), start=1):
        if not any(_is_castable(text, kind) for kind in kinds):
            raise DatasetError(f"column timestamp has {text!r:.60} in row {row:,}, which is not ISO 8601")
    raise DatasetError("column timestamp has times with a zone and times without one: give all of them one")


def _is_castable(value: object, kind: pa.DataType) -> bool:
    try:
        pc.cast(pa.scalar(value), kind)
    except pa.ArrowException:
        return False
    return True


def _plausible(times_N: Int64Array, what: str) -> Int64Array:
    odd_N = (times_N < EARLIEST_MS) | (times_N > LATEST_MS)
    if odd_N.any():
        raise DatasetError(f"{what} has a time before 1990 or after 2100 in {_first_row(odd_N)}")
    return times_N


def integers(table: pa.Table, name: str) -> Int64Array:
    """A column of whole numbers; raises DatasetError."""
    if table[name].null_count:
        raise DatasetError(f"column {name} has {table[name].null_count} empty values")
    try:
        return np.asarray(pc.cast(table[name], pa.int64()).to_numpy(), dtype=np.int64)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(f"column {name} must be whole numbers: {error}") from error


def actions(table: pa.Table) -> tuple[Int64Array, npt.NDArray[np.float64]]:
    """The action of each event and its value.

    The column `action` if there is one; else a rating is ACTION_RATING with its value, and an interaction
    without one is ACTION_CLICK. Raises DatasetError.
    """
    num_events, columns = table.num_rows, table.column_names
    value_name = next((name for name in ("value", "rating") if name in columns), None)
    value_N = np.zeros(num_events)
    if value_name:
        value_N = _values(table[value_name], value_name)
    if "action" in columns:
        return _named_actions(_plain(table, "action")), value_N
    action = Action.ACTION_RATING if value_name == "rating" else Action.ACTION_CLICK
    return np.full(num_events, int(action), dtype=np.int64), value_N


def _values(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers, 0 where there is none; raises DatasetError for what is none, and for infinity."""
    if pa.types.is_boolean(column.type):
        raise DatasetError(f"column {name} is {column.type}: it must be numbers, of stars for example")
    try:
        value_N: npt.NDArray[np.float64] = pc.cast(column, pa.float64()).to_numpy()
    except (pa.ArrowException, ValueError) as error:
        for row, value in enumerate(column.to_pylist(), start=1):
            if value is not None and not _is_castable(value, pa.float64()):
                raise DatasetError(
                    f"column {name} has {value!r:.60} in row {row:,}, which is no number"
                ) from error
        raise DatasetError(f"column {name} must be numbers: {error}") from error
    if np.isinf(value_N).any():
        raise DatasetError(f"column {name} has an infinite number in {_first_row(np.isinf(value_N))}")
    return np.nan_to_num(value_N)


def _plain(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of one value a row; raises DatasetError for one of lists or structures."""
    column = table[name]
    if pa.types.is_nested(column.type):
        raise DatasetError(f"column {name} is {column.type}: it must hold one value a row")
    return column


def _named_actions(column: pa.ChunkedArray) -> Int64Array:
    numbers: dict[Any, int] = {}
    for value in column.unique().to_pylist():
        text = str(value).strip().upper()
        name = text if text.startswith("ACTION_") else f"ACTION_{text}"
        is_number = isinstance(value, int) and not isinstance(value, bool)
        number = value if is_number else dict(Action.items()).get(name, 0)
        if number not in Action.values() or number == Action.ACTION_UNSPECIFIED:
            known = ", ".join(key.removeprefix("ACTION_").lower() for key in Action.keys()[1:])
            row = column.to_pylist().index(value) + 1
            raise DatasetError(f"column action has {value!r} in row {row:,}; known actions are {known}")
        numbers[value] = number
    return np.array([numbers[value] for value in column.to_pylist()], dtype=np.int64)
