"""Who may write a state folder: one learner, and beside it one training. Knows nothing of what they write.

The kernel drops a lock with its process, so a killed one leaves nothing to clean up.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import ServiceError


class LearnerRunning(ServiceError):
    """Another process owns the learner's state."""


class TrainingRunning(ServiceError):
    """Another training uses this state folder."""


@contextmanager
def learner_lock(root: Path) -> Iterator[None]:
    """Holds the right to write numbered checkpoints under `root`; raises LearnerRunning if another has it."""
    with _locked_file(root / "lock") as locked:
        if not locked:
            raise LearnerRunning(f"another learner is at work on {root}")
        yield


@contextmanager
def training_lock(root: Path) -> Iterator[None]:
    """Holds the right to stage under `root`; raises TrainingRunning if another has it. A learner may run."""
    with _locked_file(root / "training.lock") as locked:
        if not locked:
            raise TrainingRunning(f"another `headrace train` is at work on {root}: wait for its end")
        yield


@contextmanager
def _locked_file(path: Path) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
