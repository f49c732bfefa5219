"""The learner's checkpoints: numbered folders, the newest two kept, one writer at a time.

A checkpoint holds everything that the learner continues from: weights, histories, statistics, the dedupe
window, the offsets read and the length of the ledger. This file owns when old ones are removed and who may
write; what is in one is the business of `models.online.learner`.

A training never writes a numbered one. It stages its checkpoint under `trained/`, named by its release, and
that counts only while this very release is live: the learner then makes it its newest by one rename. So a
training counts from its record on `releases` on, and what a killed one left is waste.
"""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from models.artifacts import checkpoint
from models.errors import IncompatibleCheckpoint
from models.online.learner import OnlineLearner
from services import metrics
from services.learner.locks import learner_lock, training_lock
from services.learner.position import LearnerPosition
from services.releases.store import require_safe

log = structlog.get_logger()

_NUM_KEPT = 2


class CheckpointStore:
    """The checkpoints and ledgers under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staged = root / "trained"

    def lock(self) -> AbstractContextManager[None]:
        """Holds the right to write numbered checkpoints; raises LearnerRunning if another process has it."""
        return learner_lock(self.root)

    def training_lock(self) -> AbstractContextManager[None]:
        """Holds the right to stage; raises TrainingRunning if another process has it. A learner may run."""
        return training_lock(self.root)

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

    def newest_first(self) -> list[Path]:
        """The checkpoints, whole or broken.

        After a broken one the events since the checkpoint before it are learned again, from its state.
        """
        return checkpoint.numbered(self.root)[::-1]

    def newest_of_all(self) -> Path | None:
        """The newest checkpoint, whether it verifies or not; None where there is none."""
        return checkpoint.newest(self.root)

    # -- a training's checkpoint, until its release is live --

    def stage(self, learner: OnlineLearner, position: LearnerPosition, release_id: str) -> None:
        """Writes the checkpoint that belongs to a release, whole; raises OSError.

        Like `staged` and `adopt`, it raises IncompatibleCheckpoint for an id that cannot name a directory.
        """
        learner.save(self._staged_place(release_id), offsets=position.offsets, extra=position.extra())
        checkpoint.sync_directory(self.root)

    def staged_ledger_path(self, name: str) -> Path:
        """Where a training writes its ledger."""
        return self._staged / name

    def staged(self, release_id: str) -> Path | None:
        """The staged checkpoint of a release, or None if there is none or it is broken (which is logged)."""
        directory = self._staged_place(release_id)
        if not directory.is_dir():
            return None
        try:
            checkpoint.verify(directory)
        except IncompatibleCheckpoint as error:
            log.error("staged_checkpoint_refused", directory=str(directory), error=str(error))
            return None
        return directory

    def adopt(self, release_id: str, ledger_name: str) -> Path:
        """Makes a release's staged checkpoint the newest one; returns its new place. Raises OSError.

        The ledger goes first: a kill in between leaves a staged checkpoint that is adopted again.
        """
        place = self._staged_place(release_id)
        ledger = self._staged / ledger_name
        if ledger_name and ledger.exists():
            os.rename(ledger, self.root / ledger_name)
        target = checkpoint.next_directory(self.root)
        os.rename(place, target)
        for folder in (self.root, self._staged):
            checkpoint.sync_directory(folder)
        return target

    def _staged_place(self, release_id: str) -> Path:
        require_safe(release_id)
        return self._staged / release_id

    def staged_releases(self) -> list[str]:
        """The releases whose checkpoints are staged."""
        if not self._staged.is_dir():
            return []
        return sorted(path.name for path in self._staged.iterdir() if path.is_dir() and path.name[0] != ".")

    def drop_staged(self, *, but: str = "") -> None:
        """Removes what trainings staged, all but release `but`'s; needs the training lock."""
        if self._staged.is_dir():
            for path in self._staged.iterdir():
                if but and path.name in (but, ledger_name_of(but)):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def read_checkpoint(directory: Path) -> tuple[OnlineLearner, LearnerPosition]:
    """The learner in a checkpoint, and its place in the stream; raises IncompatibleCheckpoint."""
    learner, offsets, extra = OnlineLearner.load(directory)
    try:
        return learner, LearnerPosition.from_extra(offsets, extra)
    except (KeyError, TypeError, ValueError) as error:
        raise IncompatibleCheckpoint("format", f"{directory}: the learner's position: {error!r}") from error


def ledger_name_of(release_id: str) -> str:
    """The file name of the ledger that begins with a release."""
    return f"ledger-{release_id}.txt"
