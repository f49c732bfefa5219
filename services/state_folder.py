"""The folder that holds all state: made and tried before anything is started in it."""

import tempfile
from pathlib import Path

from services.errors import InvalidSettings


def require_writable(root: Path) -> None:
    """Makes the folder if it is not there; raises InvalidSettings if nothing can be written to it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InvalidSettings(
            f"the state folder {root} cannot be written ({error.strerror or error}): set "
            "HEADRACE_STORE__ROOT to one that can"
        ) from error
