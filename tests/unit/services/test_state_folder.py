"""A state folder that cannot be used is refused by the name of its setting."""

from pathlib import Path

import pytest

from services.errors import InvalidSettings
from services.state_folder import require_writable


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/nope", "{tmp}/file", "{tmp}/file/below"])
def test_what_is_no_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettings, match="set HEADRACE_STORE__ROOT to one that can"):
        require_writable(Path(place.format(tmp=tmp_path)))
