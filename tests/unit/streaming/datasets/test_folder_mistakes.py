"""A spoilt data folder: errors that say in one line what is wrong, where, and what to do."""

import datetime as dt
import gzip
from pathlib import Path

import numpy as np
import pytest

from streaming.datasets.folder import load_dataset
from streaming.errors import DatasetError
from tests.unit.streaming.datasets.folders import ITEMS, T, basic, write


def _without_items(folder: Path) -> None:
    (folder / "items.jsonl.gz").unlink()


def _broken_items(folder: Path) -> None:
    (folder / "items.jsonl.gz").write_bytes(b"not gzip")


def _broken_parquet(folder: Path) -> None:
    (folder / "interactions.parquet").write_bytes(b"not parquet")


def _short_embeddings(folder: Path) -> None:
    np.save(folder / "title_emb.npy", np.ones((2, 4)))


def _pickled_embeddings(folder: Path) -> None:
    np.save(folder / "title_emb.npy", np.array([{}], dtype=object), allow_pickle=True)


def _no_items(folder: Path) -> None:
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(b""))


def _latin_items(folder: Path) -> None:
    (folder / "items.jsonl.gz").write_bytes(
        gzip.compress('{"item_id": 1, "title": "café"}'.encode("latin-1"))
    )


def _events_as(folder: Path, name: str, content: bytes) -> None:
    (folder / "interactions.parquet").unlink()
    (folder / name).write_bytes(content)


_CSV = "user_id,item_id,timestamp\n" + "jörg,1,1700000000\n" * 500


def _cut_gzip(folder: Path) -> None:
    _events_as(folder, "interactions.csv.gz", gzip.compress(_CSV.encode())[:-12])


def _spoilt_gzip(folder: Path) -> None:
    _events_as(folder, "interactions.csv.gz", gzip.compress(_CSV.encode())[:25] + b"z" * 200)


def _latin_events(folder: Path) -> None:
    _events_as(folder, "interactions.csv", _CSV.encode("latin-1"))


def _column_twice(folder: Path) -> None:
    _events_as(folder, "interactions.csv", b"user_id,item_id,timestamp,item_id\n1,1,1700000000,2\n")


def _folder_for_a_file(folder: Path) -> None:
    (folder / "interactions.parquet").unlink()
    (folder / "interactions.parquet").mkdir()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_without_items, "no items file .*it holds interactions.parquet"),
        (_broken_items, "cannot be read"),
        (_broken_parquet, "cannot be read"),
        (_short_embeddings, "one row for each"),
        (_pickled_embeddings, "cannot be read"),
        (lambda folder: np.save(folder / "title_emb.npy", np.ones((3, 4), dtype=complex)), "real numbers"),
        (lambda folder: np.save(folder / "title_emb.npy", np.full((3, 4), "a")), "real numbers"),
        (lambda folder: np.save(folder / "title_emb.npy", np.full((3, 4), 1e300)), "too large for float32"),
        (lambda folder: (folder / "title_emb.npy").write_bytes(b""), "cannot be read"),
        (lambda folder: (folder / "title_emb.npy").write_bytes(b"PK\x03\x04junk"), "cannot be read"),
        (_no_items, "items.jsonl.gz has no items"),
        (_latin_items, "save it as UTF-8"),
        (_cut_gzip, "cannot be read"),
        (_spoilt_gzip, "cannot be read"),
        (_column_twice, "column 'item_id' twice"),
        (_latin_events, "save it as UTF-8"),
        (_folder_for_a_file, "it holds interactions.parquet/"),
    ],
)
def test_a_spoilt_folder_gets_one_clear_line(tmp_path: Path, spoil: object, text: str) -> None:
    basic(tmp_path)
    spoil(tmp_path / "shop")  # type: ignore[operator]
    with pytest.raises(DatasetError, match=text):
        load_dataset(tmp_path / "shop")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"timestamp": [1, None, 3, 4]}, "1 empty values, the first in row 2"),
        ({"timestamp": [28_000_000 + n for n in range(4)]}, "not all seconds"),
        ({"timestamp": [T, T, T, 1_000 * T]}, r"\(row 1\) to \d+ \(row 4\), which are not all seconds"),
        ({"user_id": [1.5, 2.0, 3.0, 4.0]}, "column user_id has 1.5 in row 1, which is a fraction"),
        ({"user_id": [float("nan"), 2.0, 3.0, 4.0]}, "which is not a number"),
        ({"item_id": ["a\nb", "2", "3", "4"]}, "control characters or line breaks"),
        ({"item_id": ["1", "2", "", ""]}, "in row 3, which must not be empty"),
        ({"item_id": [b"x", b"y", b"z", b"q"]}, "which is bytes"),
        ({"timestamp": ["x"] * 4}, "timestamp"),
        (
            {"action": ["click", "dance", "like", "cart"]},
            "dance' in row 2; known actions are impression, click",
        ),
        ({"rating": ["1", "2", "good", "4"]}, "column rating has 'good' in row 3, which is no number"),
        ({"rating": [True] * 4}, "column rating is bool"),
        ({"rating": [1.0, 2.0, float("inf"), 4.0]}, "an infinite number in row 3"),
        ({"timestamp": [dt.timedelta(seconds=n) for n in range(4)]}, r"column timestamp is duration"),
        (
            {"timestamp": ["2025-10-04", "2025-10-04", "10/04/2025", "x"]},
            "'10/04/2025' in row 3, which is not ISO",
        ),
        ({"position": ["first"] * 4}, "whole numbers"),
        ({"position": [1, None, 3, 4]}, "position has 1 empty values"),
        ({"user_id": [["a"]] * 4}, "must hold one value a row"),
        ({"action": [["click"]] * 4}, "must hold one value a row"),
        ({"action": [True] * 4}, "column action has True"),
    ],
)
def test_a_spoilt_column_gets_one_clear_line(
    tmp_path: Path, columns: dict[str, list[object]], text: str
) -> None:
    with pytest.raises(DatasetError, match=text):
        basic(tmp_path, **columns)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no column timestamp"):
        load_dataset(write(tmp_path / "shop", {"user_id": [1], "item_id": [1]}))
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset(tmp_path / "nowhere")


def test_a_column_named_wrongly_is_refused_though_ours_is_there(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"user_id": [1], "item_id": [1], "timestamp": [T]}
    folder = write(tmp_path / "shop", columns)
    with pytest.raises(DatasetError, match=r"no column uid \(for user_id\)"):
        load_dataset(folder, {"user_id": "uid"})


def test_items_twice_are_refused(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"user_id": [1], "item_id": [1], "timestamp": [T]}
    with pytest.raises(DatasetError, match="twice"):
        load_dataset(write(tmp_path / "shop", columns, [ITEMS[0], ITEMS[0]]))


def test_events_on_items_without_a_line_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    assert basic(tmp_path / "few", item_id=[1, 2, 3, 99]).num_unmatched == 1
    with pytest.raises(DatasetError, match=r"3 of 4 events.*allow-unmatched"):
        basic(tmp_path / "many", item_id=["a", "b", "c", "1"])
    folder = tmp_path / "many" / "shop"
    assert load_dataset(folder, allow_unmatched=True).num_unmatched == 3
