"""The ledger: what a killed process wrote after its checkpoint is cut off."""

from pathlib import Path

import pytest

from services.learner.ledger import Ledger


def test_lines_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.txt"
    with Ledger(path, num_bytes=0) as ledger:
        ledger.append(["a", "b"])
        length = ledger.flush()
        ledger.append(["c"])
    assert path.read_text().split() == ["a", "b", "c"]

    with Ledger(path, num_bytes=length) as ledger:
        assert path.read_text().split() == ["a", "b"]
        ledger.append(["c", "d"])
        assert ledger.flush() == 8
    assert path.read_text().split() == ["a", "b", "c", "d"]


def test_a_ledger_that_lost_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.txt"
    path.write_text("a\n")
    with pytest.raises(ValueError, match="2 bytes, its checkpoint says 4"):
        Ledger(path, num_bytes=4)
