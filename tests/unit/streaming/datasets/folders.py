"""Small data folders: four events of two users on three items with holes."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.datasets.folder import Dataset, load_dataset

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
