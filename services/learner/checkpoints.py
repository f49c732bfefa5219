"""The learner's checkpoints: numbered folders, the newest two kept, one writer at a time.

A checkpoint holds everything the learner needs to go on: weights, histories, statistics, the dedupe
window, the offsets read and the length of the ledger. This file owns when old ones go and who may write;
what is in one is the business of `models.learner`.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from models import checkpoint
from models.learner import OnlineLearner
from services import metrics
from services.errors import ServiceError
from services.learner.position import LearnerPosition

log = structlog.get_logger()

_NUM_KEPT = 2
_LOCK_RETRY_S = 0.1


class LearnerRunning(ServiceError):
    """Another process owns the learner's state."""


class CheckpointStore:
    """The checkpoints and ledgers under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self, patience_s: float = 0.0) -> Iterator[None]:
        """Holds the right to write; raises LearnerRunning if another process has it for `patience_s` more.

        A learner that waits for its first release holds it for moments only, each time it looks for one.
        The kernel drops it with the process, so a killed learner leaves nothing to clean up.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as handle:
            deadline_s = time.monotonic() + patience_s
            while not _locked(handle):
                if time.monotonic() >= deadline_s:
                    raise LearnerRunning(f"a learner is at work on {self.root}: stop it first")
                time.sleep(_LOCK_RETRY_S)
            yield

    def ledger_path(self, name: str) -> Path:
        """Where a ledger named in a checkpoint is."""
        return self.root / name

    def save(self, learner: OnlineLearner, position: LearnerPosition) -> None:
        """Writes both, atomically, as the newest checkpoint; raises OSError, and then nothing has changed."""
        manifest = learner.save(
            checkpoint.next_directory(self.root), offsets=position.offsets, extra=position.extra()
        )
        checkpoint.prune(self.root, _NUM_KEPT)
        metrics.CHECKPOINT_SUCCESS.set_to_current_time()
        metrics.CHECKPOINT_BYTES.set(sum(file.size_bytes for file in manifest.files))

    def load(self) -> tuple[OnlineLearner, LearnerPosition] | None:
        """The newest checkpoint that verifies, or None where there is none.

        After a broken one the events since the checkpoint before it are learned again, from its state.
        """
        directory = checkpoint.latest(self.root)
        if directory is None:
            return None
        learner, offsets, extra = OnlineLearner.load(directory)
        return learner, LearnerPosition.from_extra(offsets, extra)


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
