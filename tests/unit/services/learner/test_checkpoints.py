"""The folder of the learner's checkpoints: what may name a place in it."""

from pathlib import Path

import pytest

from models.errors import IncompatibleCheckpoint
from services.learner.checkpoints import CheckpointStore


@pytest.mark.parametrize("release_id", ["", ".", "..", "../000000000001", "/etc", "a/b", "x" * 129])
def test_no_release_leads_out_of_what_is_staged(tmp_path: Path, release_id: str) -> None:
    own = tmp_path / "000000000001"
    own.mkdir()
    store = CheckpointStore(tmp_path)
    with pytest.raises(IncompatibleCheckpoint) as refused:
        store.staged(release_id)
    assert refused.value.reason == "unsafe_name"
    with pytest.raises(IncompatibleCheckpoint):
        store.adopt(release_id, "")
    assert list(tmp_path.iterdir()) == [own]


def test_what_nobody_staged_is_not_there(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).staged("20260101-120000-abcdef") is None
