"""Who may write a state folder: one learner, and beside it one training. Knows nothing of what they write.

The kernel drops a lock with its process, so a killed one leaves nothing to clean up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from services.errors import ServiceError


class LearnerRunning(ServiceError):
    """Another process owns the learner's state."""


class TrainingRunning(ServiceError):
    """Another training uses this state folder."""


@contextmanager
def learner_lock(root: Path) -> Iterator[None]:
    """Holds the right to write numbered checkpoints under `root`; raises LearnerRunning if another has it."""
    with _held(root / "lock", LearnerRunning(f"another learner is at work on {root}")):
        yield


@contextmanager
def training_lock(root: Path) -> Iterator[None]:
    """Holds the right to stage under `root`; raises TrainingRunning if another has it. A learner may run."""
    taken = TrainingRunning(f"another `headrace train` is at work on {root}: wait for its end")
    with _held(root / "training.lock", taken):
        yield


@contextmanager
def _held(path: Path, taken: ServiceError) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise taken from error
    try:
        yield
    finally:
        lock.release()
