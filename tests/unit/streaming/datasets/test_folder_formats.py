"""A data folder in other formats: files, times, ids, texts and vectors are read as what they are."""

import datetime as dt
import decimal
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.datasets.folder import load_dataset
from streaming.errors import DatasetError
from tests.unit.streaming.datasets.folders import T, basic, write


def test_text_that_a_parquet_file_holds_as_bytes(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"user_id": [1], "item_id": [1], "timestamp": [T]}
    folder = write(tmp_path / "shop", columns)
    (folder / "items.jsonl.gz").unlink()
    pq.write_table(pa.table({"item_id": ["1"], "title": ["café".encode()]}), folder / "items.parquet")
    assert load_dataset(folder).items[0].title == "café"


@pytest.mark.case("times as dates, ISO text, milliseconds, microseconds; float32 refused")
def test_times_are_read_as_what_they_are(tmp_path: Path) -> None:
    day = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    seconds = int(day.timestamp())
    same: list[list[object] | pa.Array] = [
        [seconds + n for n in range(4)],
        [1_000 * (seconds + n) for n in range(4)],
        [1_000_000 * (seconds + n) for n in range(4)],
        [1_000_000_000 * (seconds + n) for n in range(4)],
        [float(seconds + n) for n in range(4)],
        [(day + dt.timedelta(seconds=n)).isoformat() for n in range(4)],
        [f"2025-01-01T00:00:0{n}" for n in range(4)],
        [f"2025-01-01 01:00:0{n}+01:00" for n in range(4)],
        pa.array([day + dt.timedelta(seconds=n) for n in range(4)]),
    ]
    for k, times in enumerate(same):
        dataset = basic(tmp_path / str(k), timestamp=times)  # type: ignore[arg-type]
        assert dataset.time_ms_N.tolist() == [1_000 * (seconds + n) for n in range(4)]
    dates = pa.array([(day + dt.timedelta(days=n)).date() for n in range(4)])
    assert basic(tmp_path / "dates", timestamp=dates).time_ms_N[1] == 1_000 * (seconds + 86_400)
    with pytest.raises(DatasetError, match=r"column timestamp is float.*nearest 128"):
        basic(tmp_path / "float32", timestamp=np.arange(T, T + 4).astype(np.float32))  # type: ignore[arg-type]


def test_whole_numbers_are_ids_however_they_are_stored(tmp_path: Path) -> None:
    for name, ids in (
        ("float", [1.0, 2.0, 3.0, 1.0]),
        ("decimal", [decimal.Decimal(n) for n in (1, 2, 3, 1)]),
    ):
        dataset = basic(tmp_path / name, item_id=list(ids))
        assert dataset.num_unmatched == 0
        assert sorted(set(dataset.item_id_N)) == ["1", "2", "3"]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz", "ndjson"])
def test_other_files_say_the_same(tmp_path: Path, ending: str) -> None:
    expected = basic(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    rows = [("7", "1", T + 300), ("8", "2", T + 100), ("7", "3", T + 200), ("8", "1", T + 200)]
    opener = gzip.open if ending.endswith(".gz") else open
    with opener(folder / f"interactions.{ending}", "wt") as out:  # type: ignore[operator]
        if "csv" in ending:
            out.write("uid,item_id,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
        else:
            out.writelines(json.dumps({"uid": u, "item_id": i, "ts": t}) + "\n" for u, i, t in rows)
    (folder / "items.csv").write_text("item_id,title\n1,One\n2,\n3,Three\n")
    dataset = load_dataset(folder, {"user_id": "uid", "timestamp": "ts"})
    assert [dataset.event(n) for n in range(4)] == [expected.event(n) for n in range(4)]
    assert [item.title for item in dataset.items] == ["One", "", "Three"]
    with pytest.raises(
        DatasetError, match=r"no column user_id.*it has uid, item_id, ts.*--columns user_id=NAME"
    ):
        load_dataset(folder)


@pytest.mark.case("a title with half a surrogate pair; zero and NaN vectors")
def test_odd_text_and_vectors(tmp_path: Path) -> None:
    items = [
        {"item_id": 1, "title": "\ud800 half"},
        {"item_id": 2, "title": "[/x] \U0001f600 שלום"},
        {"item_id": 3},
    ]
    columns: dict[str, list[object]] = {"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": [T] * 3}
    folder = write(tmp_path / "shop", columns, items)
    assert [item.title for item in load_dataset(folder).items] == ["\ufffd half", "[/x] \U0001f600 שלום", ""]
    vectors = np.ones((3, 4), dtype=np.float32)
    for value, text in ((0.0, "row 2 has only zeros"), (np.nan, "row 2 has values that are no numbers")):
        vectors[1] = value
        np.save(folder / "title_emb.npy", vectors)
        with pytest.raises(DatasetError, match=text):
            load_dataset(folder)


def write_lines(folder: Path, interactions: str, items: str) -> Path:
    folder.mkdir()
    (folder / "interactions.jsonl").write_text(interactions)
    (folder / "items.jsonl").write_text(items)
    return folder


ROW = f'{{"user_id": "a", "item_id": "i1", "timestamp": {T}}}\n'


def test_lines_of_any_depth_and_length_are_read_or_refused(tmp_path: Path) -> None:
    items = '{"item_id": "i1"}\n'
    deep = ROW.replace("}", ', "z": ' + "[" * 20_000 + "1" + "]" * 20_000 + "}")
    with pytest.raises(DatasetError, match=r"interactions.jsonl, line 2: .* nest too deep"):
        load_dataset(write_lines(tmp_path / "deep", ROW + deep, items))
    wide = ROW.replace("}", ', "z": [' + "[1], " * 2_000 + "[1]]}")
    long = ROW.replace("}", f', "z": "{"x" * 3_000_000}"}}')
    for name, line in (("wide", wide), ("long", long)):
        assert len(load_dataset(write_lines(tmp_path / name, line, items))) == 1


def test_lists_that_were_written_as_text_are_lists(tmp_path: Path) -> None:
    for n, written in enumerate(("['x', 'y']", '[\\"x\\", \\"y\\"]')):
        items = f'{{"item_id": "i1", "title": "[/sale]", "categories": "{written}"}}\n'
        [item] = load_dataset(write_lines(tmp_path / str(n), "\ufeff" + ROW, "\ufeff" + items)).items
        assert (item.title, list(item.categories)) == ("[/sale]", ["x", "y"])
    for n, (field, problem) in enumerate(
        (('"title": ["A"]', "title is a list"), ('"categories": [{"a": 1}]', "categories must be texts"))
    ):
        with pytest.raises(DatasetError, match=f"items.jsonl, line 1: {problem}"):
            load_dataset(write_lines(tmp_path / f"odd-{n}", ROW, f'{{"item_id": "i1", {field}}}\n'))
