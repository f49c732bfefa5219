"""Everything with a `state`: saved and loaded, it goes on exactly as the original does.

Each row of `tests.contract.states` is used at random not at all, a little or a lot, goes through a real
checkpoint, and from then on answers and remembers the same as the one it was saved from.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifacts.checkpoint import load, save
from tests.contract.states import ROWS, Row, Saved
from tests.sources import classes


def through_checkpoint(saved: Saved, directory: Path) -> Saved:
    """Written and read as a learner's checkpoint is."""
    save(directory, tensors=saved.tensors, tables=saved.tables, meta=saved.meta)
    read = load(directory)
    return Saved(tensors=read.tensors, tables=read.tables, meta=read.meta)


def differences(left: Saved, right: Saved) -> list[str]:
    """Where two states are not the same, to the bit and the type."""
    assert left.tensors.keys() == right.tensors.keys()
    found = []
    for group, tensors in left.tensors.items():
        others = right.tensors[group]
        found += [f"{group}.{name}" for name in tensors.keys() ^ others.keys()]
        found += [
            f"{group}.{name}"
            for name in tensors.keys() & others.keys()
            if tensors[name].dtype != others[name].dtype or not torch.equal(tensors[name], others[name])
        ]
    found += [name for name in left.tables if not left.tables[name].equals(right.tables[name])]
    return found + [name for name in left.meta if left.meta[name] != right.meta[name]]


def test_everything_with_a_state_has_a_row() -> None:
    with_state = {
        one
        for one in classes("models")
        if hasattr(one, "state") and (hasattr(one, "from_state") or hasattr(one, "load_state"))
    }
    assert with_state == {type(row.make()) for row in ROWS.values()}


@pytest.mark.parametrize("num_uses", [0, 1, 4], ids=["unused", "used once", "used often"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_saved_and_loaded_it_goes_on_as_the_original(row: Row, num_uses: int, tmp_path: Path) -> None:
    original, random = row.make(), np.random.default_rng(num_uses)
    for _ in range(num_uses):
        row.use(original, random)
    loaded = row.restore(through_checkpoint(row.keep(original), tmp_path / "first"))
    assert differences(row.keep(original), row.keep(loaded)) == []
    ours, theirs = np.random.default_rng(99), np.random.default_rng(99)
    for n in range(2):
        assert row.use(loaded, theirs) == row.use(original, ours)
        assert differences(row.keep(original), row.keep(loaded)) == []
        # and again, as a learner does every few minutes
        loaded = row.restore(through_checkpoint(row.keep(loaded), tmp_path / str(n)))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_saving_changes_nothing(row: Row, tmp_path: Path) -> None:
    original, twin = row.make(), row.make()
    ours, theirs = np.random.default_rng(7), np.random.default_rng(7)
    for n in range(3):
        assert row.use(original, ours) == row.use(twin, theirs)
        through_checkpoint(row.keep(original), tmp_path / str(n))
    assert differences(row.keep(original), row.keep(twin)) == []
